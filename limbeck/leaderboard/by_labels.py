"""What records say by a number: rounds of an active loop; pairs that differ in their shots or network calls alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from limbeck.engine.record import RunRecord
from limbeck.leaderboard.store import Group

_AT = re.compile(r"(?P<metric>[^.@]+)@(?P<labels>\d+)")
Count = Callable[[Group], int | None]  # the number of a group that its family differs in
Runs = Mapping[int, Mapping[int, tuple[float, str]]]  # value and record id by labels, then by seed


def metrics_by_labels(group: Group) -> list[str]:
    """Names of the metrics that its records have by number of labels, the primary one first."""
    named = group.runs.filter(group.runs["kind"] == "student")["metrics"].explode().unique(maintain_order=True)
    found = dict.fromkeys(match["metric"] for m in named if (match := _AT.fullmatch(m)))
    primary = group.first["primary"]
    return sorted(found, key=lambda name: name != primary)


def rounds_of(records: Iterable[RunRecord], metric: str) -> Runs:
    """The values 'metric@N' of some records."""
    runs: dict[int, dict[int, tuple[float, str]]] = {}
    for record in records:
        for name, value in record.metrics.items():
            match = _AT.fullmatch(name)
            if match and match["metric"] == metric:
                runs.setdefault(int(match["labels"]), {})[record.seed] = (value, record.id)
    return runs


def strategy_of(record: RunRecord) -> str | None:
    """The registered name of how a loop's images are chosen; None without a loop."""
    strategy = _part(_part(record.config, "loop"), "strategy")
    return str(strategy["type"]) if "type" in strategy else None


def families_of(groups: Sequence[Group], count: Count) -> list[list[Group]]:
    """Groups that make one curve, by rising number; what cannot be told apart makes none.

    Such a family has one benchmark version, teacher network, student network and training set but for its shots; those
    that still have one number twice are told apart by their pairs' names without that number.

    Args:
        count: `shots_of` or `calls_of`.
    """
    alike: dict[str, list[Group]] = {}
    for group in groups:
        if count(group) is not None:
            alike.setdefault(repr(_likeness(group)), []).append(group)
    families: list[list[Group]] = []
    for found in alike.values():
        if _distinct(found, count):
            families.append(found)
            continue
        named: dict[str, list[Group]] = {}
        for group in found:
            named.setdefault(_stem(group, count), []).append(group)
        families += [family for family in named.values() if _distinct(family, count)]
    return [sorted(family, key=lambda g: count(g) or 0) for family in families if len(family) > 1]


def shots_of(group: Group) -> int | None:
    """Labelled images a class of the group's students; None unless it is one number for all."""
    found = set(group.runs.filter(group.runs["kind"] == "student")["shots"])
    return found.pop() if len(found) == 1 else None


def calls_of(group: Group) -> int | None:
    """Network calls that an image takes the group's students; None unless it is one whole number for all."""
    students = group.runs.filter(group.runs["kind"] == "student")
    found = {dict(zip(*one)).get("calls") for one in students.select("metrics", "values").iter_rows()}
    calls = found.pop() if len(found) == 1 else None
    return int(calls) if calls is not None and calls == int(calls) else None


def _likeness(group: Group) -> list[Any]:
    """What is the same in all pairs of a curve."""
    rest = {k: v for k, v in sorted(_train(group.sample).items()) if k not in ("shots", "shots_seed", "seed")}
    teachers = sorted({t.student.name for t in group.teachers})
    return [group.benchmark, group.version, teachers, group.sample.student.name, rest]


def _distinct(groups: Sequence[Group], count: Count) -> bool:
    return len({count(g) for g in groups}) == len(groups)


def _stem(group: Group, count: Count) -> str:
    """The pair's name without its number: 'clip-cnn' of 'clip-cnn-4shot', 'unet' of 'unet-2step' with two calls."""
    rest = re.sub(rf"(?<!\d){count(group)}(?!\d)[-_ ]*(shots?|steps?)?", "", group.pair, count=1)
    return re.sub(r"([-_ ])[-_ ]+", r"\1", rest).strip("-_ ")


def shared_name(family: Sequence[Group], count: Count) -> str:
    """What its pairs' names have in common: 'clip-cnn' of 'clip-cnn-1shot' and 'clip-cnn-4shot'; '' for nothing."""
    stems = {_stem(group, count) for group in family}
    return stems.pop() if len(stems) == 1 else ""


def _train(record: RunRecord) -> Mapping[str, Any]:
    return _part(_part(record.config, "data"), "train")


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}
