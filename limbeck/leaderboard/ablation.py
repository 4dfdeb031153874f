"""Ablations: one option of a method at several values beside the method itself; read from the records of variants."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from limbeck.engine.config import PLAIN, TEACHER
from limbeck.engine.record import RunRecord
from limbeck.engine.variant import Variant, split_variant
from limbeck.leaderboard.checks import student_config
from limbeck.leaderboard.rows import Row, assumption_of, build_row
from limbeck.leaderboard.stats import Estimate, gained
from limbeck.leaderboard.store import FLAGGED, Group

Axis = Literal["linear", "log", "nominal"]
LONGEST = 24
_LOG_FROM = 10.0  # largest ÷ smallest value from which a logarithmic axis reads better


@dataclass(frozen=True)
class Point:
    """One value of an option.

    label: the value, short: '2', '1-3-5', 'layer1'; 'base' where the method's own value cannot be read.
    value: as in the config, lists for tuples; None for 'base'.
    is_base: whether this is the method as the table has it.
    over_plain, over_base: gains on shared seeds in the primary metric, positive is better; None where none can be told.
    """

    label: str
    value: Any
    is_base: bool
    row: Row
    over_plain: Estimate | None = None
    over_base: Estimate | None = None


@dataclass(frozen=True)
class Ablation:
    """One option of one method: its values in order, the method's own among them.

    axis: 'nominal' unless every value is a number.
    assumption: what of the variants is ours, not the paper's, where the method's own row does not say so.
    warning: what is missing or flagged, in one line.
    """

    method: str
    option: str
    axis: Axis
    points: tuple[Point, ...]
    assumption: str | None = None
    warning: str | None = None

    @property
    def name(self) -> str:
        """'KD@temperature'."""
        return f"{self.method}@{self.option}"

    @property
    def base(self) -> Point | None:
        """The method as the table has it; None where it has no record."""
        return next((p for p in self.points if p.is_base), None)

    @property
    def networks_differ(self) -> bool:
        """Whether the values change the size of what is deployed."""
        return len({p.row.cost.parameters for p in self.points}) > 1


def build_ablations(group: Group) -> tuple[Ablation, ...]:
    """The ablations of a group: its variants by method and option, by name."""
    found: dict[tuple[str, str], list[tuple[Variant, Mapping[int, RunRecord]]]] = {}
    for seeds in group.variants.values():
        base, variant = split_variant(next(iter(seeds.values())).method)
        assert variant is not None
        found.setdefault((base.lower(), variant.option), []).append((variant, seeds))
    return tuple(_ablation(group, base, option, variants) for (base, option), variants in sorted(found.items()))


def _ablation(
    group: Group, base: str, option: str, variants: Sequence[tuple[Variant, Mapping[int, RunRecord]]]
) -> Ablation:
    own = group.students.get(base, {})
    first = next(iter(variants[0][1].values()))
    method = split_variant(next(iter(own.values()), first).method)[0]
    known = [(plain_value(v.value), seeds) for v, seeds in variants]
    read, value = own_value(own.values(), option)
    values = [v for v, _ in known] + ([value] if read else [])
    axis, order, label = _axis(values), _order(option, values), _labels(option, values)
    points = [_point(group, label(v), v, False, seeds, own) for v, seeds in known]
    points.sort(key=lambda p: order(p.value))
    if own:
        point = _point(group, label(value) if read else "base", value, True, own, own)
        before = sum(order(p.value) < order(value) for p in points) if read else 0
        points.insert(before, point)
    said = assumption_of(own.values())
    ours = assumption_of(r for _, seeds in variants for r in seeds.values())
    warning = _warning(group, f"{method}@{option}", own, points)
    return Ablation(method, option, axis, tuple(_distinct(points)), ours if ours != said else None, warning)


def _point(
    group: Group, label: str, value: Any, is_base: bool, seeds: Mapping[int, RunRecord], own: Mapping[int, RunRecord]
) -> Point:
    def gain(over: Mapping[int, RunRecord]) -> Estimate | None:
        values = [{s: r.value for s, r in runs.items()} for runs in (seeds, over)]
        found = gained(*values, higher_is_better=group.sample.higher_is_better)
        return found.difference if found else None

    plain = group.students.get(PLAIN, {})
    itself = own is plain  # variants of the plain student have one gain, not twice the same
    row = build_row(seeds, "method")
    return Point(
        label,
        value,
        is_base,
        row,
        over_plain=None if is_base and itself else gain(plain),
        over_base=None if is_base or itself else gain(own),
    )


def own_value(records: Iterable[RunRecord], option: str) -> tuple[bool, Any]:
    """Whether the configs of a method's runs tell its own value of an option, and the value.

    A link that names no teacher reads 'teacher'; any other option that is left out has a default that only code knows.
    """
    found = [_read(r, option) for r in records]
    same = bool(found) and all(f == found[0] for f in found)
    return found[0] if same else (False, None)


def _read(record: RunRecord, option: str) -> tuple[bool, Any]:
    model = record.config.get("model")
    where, dot, key = option.partition(".")
    source: Any = model
    if dot and where == "student":
        source = student_config(record)
    elif option != "task_weight":
        index, key = (int(where), key) if dot and where.isdigit() else (0, option)
        links = model.get("links") if isinstance(model, Mapping) else None
        source = links[index] if isinstance(links, Sequence) and index < len(links) else None
        if key == TEACHER and isinstance(source, Mapping):
            return True, source.get(key, TEACHER)
    else:
        key = option
    if not isinstance(source, Mapping) or key not in source:
        return False, None
    return True, plain_value(source[key])


def plain_value(value: Any) -> Any:
    """A value as JSON has it: lists for tuples."""
    return [plain_value(v) for v in value] if isinstance(value, (list, tuple)) else value


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_number(v) for v in value)


def _axis(values: Sequence[Any]) -> Axis:
    if not all(_number(v) for v in values):
        return "nominal"
    low, high = min(values), max(values)
    return "log" if low > 0 and high / low >= _LOG_FROM else "linear"


def _order(option: str, values: Sequence[Any]) -> Any:
    """A sort key: numbers and lists of numbers ascending, teachers by count, else as the records are named."""
    if all(_number(v) for v in values):
        return lambda v: v
    if all(_numbers(v) for v in values):
        return tuple
    if _last(option) == TEACHER:
        return lambda v: (1, v) if isinstance(v, str) else (len(v), *v)
    return lambda v: repr(v).lower()


def _labels(option: str, values: Sequence[Any]) -> Any:
    counted = _last(option) == TEACHER and any(isinstance(v, list) for v in values)

    def label(value: Any) -> str:
        if counted:
            names = [value] if isinstance(value, str) else value
            return f"{len(names)}: {'+'.join(names)}"
        return short_value(value)

    return label


def short_value(value: Any) -> str:
    """A value for an axis: 2.0 → '2', [1, 3, 5] → '1-3-5', [['layer1', 'layer1']] → 'layer1'.

    A pair of taps that differ is 'layer1→layer2', several pairs are joined by '+'.
    """
    if _number(value):
        return f"{value:.6g}"
    if isinstance(value, list) and value and all(isinstance(v, list) for v in value):
        return "+".join(str(v[0]) if len(v) == 2 and v[0] == v[1] else "→".join(map(str, v)) for v in value)
    if isinstance(value, list):
        return "-".join(map(short_value, value))
    return str(value)


def _distinct(points: Iterable[Point]) -> Iterable[Point]:
    """Points with labels of at most LONGEST characters; equal ones are numbered."""
    taken: dict[str, int] = {}
    for point in points:
        label = point.label if len(point.label) <= LONGEST else point.label[: LONGEST - 1] + "…"
        if not point.is_base:  # the method's own value is marked, not numbered
            taken[label] = taken.get(label, 0) + 1
            label = label if taken[label] == 1 else f"{label} ({taken[label]})"
        yield replace(point, label=label)


def _last(option: str) -> str:
    return option.rpartition(".")[2]


def _warning(group: Group, name: str, own: Mapping[int, RunRecord], points: Sequence[Point]) -> str | None:
    """What is missing, in one line however many values there are."""
    plain = group.students.get(PLAIN, {}).keys()
    variants = [p for p in points if not p.is_base]
    said = [] if own else ["no record of the method itself"]
    short = [plain - p.row.records.keys() for p in variants]
    if any(short):
        seeds = ", ".join(map(str, sorted(set().union(*short))))
        said.append(f"{sum(map(bool, short))} of {len(variants)} values lack seeds of the plain student ({seeds})")
    lone = [p for p in variants if p.row.records.keys() - plain]
    if lone:
        said.append(f"{len(lone)} of {len(variants)} values have seeds without plain student, left out of the gain")
    for status in FLAGGED:
        marked = [p.label for p in points if status in p.row.flags]
        if marked:
            said.append(f"{status}: {marked[0]}" + (f" and {len(marked) - 1} more" if marked[1:] else ""))
    failed = [f for f in group.failures if f.method.lower().startswith(f"{name.lower()}=")]
    if failed:
        kinds = ", ".join(sorted({f.error for f in failed}))
        said.append(f"{len(failed)} run{'s' if len(failed) > 1 else ''} failed ({kinds})")
    return f"{name}: {'; '.join(said)}" if said else None
