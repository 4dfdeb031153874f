"""What a folder of records must satisfy before anything is compared, and the errors that say otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.engine.config import PLAIN, TEACHER, is_teacher
from limbeck.engine.record import RunRecord, record_id
from limbeck.errors import OutputError, UserError
from limbeck.leaderboard.places import Places, folders_of

Runs = Mapping[str, Mapping[int, RunRecord]]


class ResultsError(UserError):
    """A folder of records cannot be shown as it is; names the records."""


class NoResults(ResultsError):
    """The folder is absent or holds no record."""


class MisplacedRecord(ResultsError):
    """A record lies where its id does not say."""


class DuplicateRecord(ResultsError):
    """Two files hold the same run."""


class MissingBaseline(ResultsError):
    """A method has no plain student on any of its seeds."""


class MixedRecords(ResultsError):
    """Records of one group differ in what must be the same: selection, data, metric or initial weights."""


def check_apart(out: str | Path, results: Places) -> None:
    """Refuse to write a page into a folder of records.

    Raises: OutputError.
    """
    target = Path(out).resolve()
    for folder in folders_of(results):
        if target.is_relative_to(folder.resolve()):
            raise OutputError(
                f"{out}: lies in the folder of records {folder}, which holds nothing else; choose another --out"
            )


def check_same(records: Sequence[RunRecord]) -> None:
    """Refuse records of one benchmark version that were made by different rules or on different data.

    Raises: MixedRecords.
    """
    for record in records:
        if record.recipe.selection == "best_test":
            raise MixedRecords(
                f"{record.id}: selected on the test split, which only reported figures may be; run it again"
            )
    students = [r for r in records if not is_teacher(r.method)]  # a teacher may come from a recipe of its own
    rules: list[tuple[str, Sequence[RunRecord], Callable[[RunRecord], str]]] = [
        ("selection", students, lambda r: r.recipe.selection),
        ("data hash", records, lambda r: f"{r.data.content_hash} ({r.data.split})"),
        (
            "primary metric",
            records,
            lambda r: f"{r.primary_metric} ({'higher' if r.higher_is_better else 'lower'} is better)",
        ),
    ]
    draws: dict[Any, list[RunRecord]] = {}
    for record in students:
        draws.setdefault(drawn(record), []).append(record)
    rules += [("training data hash", runs, lambda r: str(r.data.train_hash)) for runs in draws.values()]
    for name in dict.fromkeys(name for r in records for name in r.data.also):
        having = [r for r in records if name in r.data.also]
        rules.append((f"data hash of {name}", having, lambda r, name=name: r.data.also[name].content_hash))
    for what, compared, rule in rules:
        for other in compared[1:]:
            first = compared[0]
            if rule(other) != rule(first):
                raise MixedRecords(
                    f"{first.id} and {other.id} differ in {what}: {_short(rule(first))} and {_short(rule(other))}; "
                    "run the older one again"
                )


def drawn(record: RunRecord) -> Any:
    """What training data is compared by: None where all images have labels.

    Of a partly labelled set its pair, for pairs of one benchmark may differ in their shots, and the seed of the draw.
    Sample requests hold no image: methods that need none are trained beside others that do.
    """
    data = record.config.get("data")
    train = data.get("train") if isinstance(data, Mapping) else None
    kind = train.get("type") if isinstance(train, Mapping) else None
    if kind == "SampleRequests":
        return kind
    if not isinstance(train, Mapping) or kind != "PartlyLabelled":
        return None
    return record.pair, train.get("shots_seed")


def check_baseline(students: Runs) -> None:
    """Refuse a method that has no plain student on any of its seeds.

    Raises: MissingBaseline.
    """
    plain = students.get(PLAIN, {})
    for seeds in students.values():
        if not plain.keys() & seeds.keys():
            first = next(iter(seeds.values()))
            wanted = record_id(first.benchmark, first.pair, PLAIN, first.seed)
            raise MissingBaseline(
                f"{first.id} has no plain student on any seed of its method; run it: {wanted} is missing"
            )


def check_initial(students: Runs) -> None:
    """Refuse runs of one network and seed that started from different weights; those that start as a copy of their
    teacher are compared with each other.

    Raises: MixedRecords.
    """
    known: dict[int, list[RunRecord]] = {}
    for seeds in students.values():
        for seed, record in seeds.items():
            starts = known.setdefault(seed, [])
            start = next((s for s in starts if same_network(s, record) and taught(s) == taught(record)), None)
            if start is None:
                starts.append(record)
            elif record.initial_hash != start.initial_hash:
                raise MixedRecords(
                    f"{start.id} and {record.id} started from different weights: initial hash "
                    f"{_short(start.initial_hash)} and {_short(record.initial_hash)}; run both again"
                )


def taught(record: RunRecord) -> bool:
    """Whether a run starts from its teacher's weights, as links of step distillation do unless they say otherwise."""
    model = record.config.get("model")
    links = model.get("links") if isinstance(model, Mapping) else None
    if record.task != "image-generation" or not isinstance(links, Sequence):
        return False
    return any(link.get("start", TEACHER) == TEACHER and bool(link.get("weight", 1.0)) for link in links)


def same_network(a: RunRecord, b: RunRecord) -> bool:
    """Whether two runs deploy the same network: equal size, and equal model configs where both have one."""
    ours, theirs = student_config(a), student_config(b)
    return a.student == b.student and (ours is None or theirs is None or ours == theirs)


def student_config(record: RunRecord) -> Mapping[str, Any] | None:
    """The model config of the student that a run trained; None where its config does not have one."""
    found = _members(record).get("student")
    model = found.get("model") if isinstance(found, Mapping) else None
    return model if isinstance(model, Mapping) else None


def teacher_ids(record: RunRecord) -> Iterator[str]:
    """The ids of the teachers' records that a run used: the one that it names, then those of its other members."""
    if record.teacher_record:
        yield record.teacher_record
    for member in _members(record).values():
        weights = str(member.get("weights") or "") if isinstance(member, Mapping) else ""
        if weights.startswith("run://") and weights != f"run://{record.teacher_record}":
            yield weights.removeprefix("run://")


def _members(record: RunRecord) -> Mapping[str, Any]:
    model = record.config.get("model")
    members = model.get("members") if isinstance(model, Mapping) else None
    return members if isinstance(members, Mapping) else {}


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:12] + "…"
