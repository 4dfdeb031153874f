"""The store: reads a folder of records, refuses what must not be compared, and groups what may."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from limbeck.engine.config import PLAIN, TEACHER, is_teacher
from limbeck.engine.record import FailureRecord, RunRecord, iter_records, record_id
from limbeck.errors import CorruptFile, UnknownName, UserError

FLAGGED = ("unreliable", "partial")


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


@dataclass(frozen=True)
class Group:
    """Records that may be compared: one benchmark version and one pair.

    students: plain student and methods, by name in lower case, then by seed; flagged ones are included.
    teachers: the teacher records that the methods name; the pair's own where they name none.
    """

    benchmark: str
    version: int
    pair: str
    students: dict[str, dict[int, RunRecord]]
    teachers: list[RunRecord]
    warnings: list[str] = field(default_factory=list)
    failures: list[FailureRecord] = field(default_factory=list)

    @property
    def name(self) -> str:
        """'demo/resnet20-resnet8', what tables and markers are called by."""
        return f"{self.benchmark}/{self.pair}"

    @property
    def records(self) -> list[RunRecord]:
        """Every record of the group, teachers first."""
        return [*self.teachers, *(r for seeds in self.students.values() for r in seeds.values())]

    @property
    def sample(self) -> RunRecord:
        """One record, for what is the same in all: task, data, primary metric, selection."""
        for seeds in self.students.values():
            return next(iter(seeds.values()))
        return self.teachers[0]

    def method(self, name: str) -> dict[int, RunRecord]:
        """A method's records by seed.

        Raises: UnknownName with the nearest methods of this group.
        """
        key = name.lower()
        if key == TEACHER:
            return {r.seed: r for r in self.teachers}
        if key not in self.students:
            names = [next(iter(seeds.values())).method for seeds in self.students.values()]
            raise UnknownName("method", name, names, f"in {self.name}")
        return self.students[key]


@dataclass(frozen=True)
class Results:
    """A checked folder of records."""

    folder: Path
    groups: list[Group]
    paths: dict[str, Path]

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def benchmark(self, name: str) -> list[Group]:
        """The groups of a benchmark's highest version.

        Raises: UnknownName.
        """
        found = [g for g in self.groups if g.benchmark == name]
        if not found:
            raise UnknownName("benchmark", name, {g.benchmark for g in self.groups}, f"in {self.folder}")
        version = max(g.version for g in found)
        return [g for g in found if g.version == version]


def load_results(folder: str | Path, *, benchmarks: Collection[str] | None = None) -> Results:
    """Read, check and group every record below a folder; superseded ones are left out.

    Args:
        benchmarks: keep these alone; the others are read but not judged.
    Raises: NoResults, CorruptFile, DuplicateRecord, MisplacedRecord, MissingBaseline, MixedRecords, UnknownName.
    """
    root = Path(folder)
    if not root.is_dir():
        raise NoResults(f"{root}: no such folder of records; make some with: limbeck bench run demo")
    paths, records = _read(root)
    if not records:
        raise NoResults(f"{root}: holds no record; make some with: limbeck bench run demo")
    known = {r.benchmark for r in records.values()}
    for name in benchmarks or ():
        if name not in known:
            raise UnknownName("benchmark", name, known, f"in {root}")
    live = {k: r for k, r in records.items() if r.status not in ("superseded", "failed")}
    chosen = [r for r in live.values() if not benchmarks or r.benchmark in benchmarks]
    if not chosen:
        raise NoResults(f"{root}: every record is superseded or failed; run the suite again")
    failures = _read_failures(root)
    for benchmark in sorted({(r.benchmark, r.benchmark_version) for r in chosen}):
        _check_same([r for r in chosen if (r.benchmark, r.benchmark_version) == benchmark])
    keys = sorted({(r.benchmark, r.benchmark_version, r.pair) for r in chosen})
    groups = [_group(key, chosen, live, failures) for key in keys]
    named = {r.teacher_record for r in chosen}
    groups = [g for g in groups if g.students or not all(t.id in named for t in g.teachers)]
    return Results(root, groups, paths)


def _read(root: Path) -> tuple[dict[str, Path], dict[str, RunRecord]]:
    paths: dict[str, Path] = {}
    records: dict[str, RunRecord] = {}
    for path, record in iter_records(root):
        if record.id in paths:
            raise DuplicateRecord(f"{paths[record.id]} and {path} hold the same run {record.id}; delete one")
        paths[record.id], records[record.id] = path, record
    for identity, path in paths.items():
        place = path.relative_to(root).as_posix().removesuffix(".json")
        if place != identity:
            raise MisplacedRecord(
                f"{path}: is the record of {identity}; move it to {root / identity}.json or delete it"
            )
    return paths, records


def _read_failures(root: Path) -> list[FailureRecord]:
    found = []
    for path in sorted(root.rglob("*.failed.json")):
        try:
            found.append(FailureRecord.model_validate(json.loads(path.read_text(encoding="utf-8"))))
        except (ValidationError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CorruptFile(f"{path}: not a whole failure record; delete it and run it again") from error
    return found


def _check_same(records: Sequence[RunRecord]) -> None:
    """Refuse records of one benchmark version that were made by different rules or on different data."""
    for record in records:
        if record.recipe.selection == "best_test":
            raise MixedRecords(
                f"{record.id}: selected on the test split, which only reported figures may be; run it again"
            )
    students = [r for r in records if not is_teacher(r.method)]  # a teacher may come from a recipe of its own
    rules = [
        ("selection", students, lambda r: r.recipe.selection),
        ("data hash", records, lambda r: f"{r.data.content_hash} ({r.data.split})"),
        ("training data hash", students, lambda r: str(r.data.train_hash)),
        (
            "primary metric",
            records,
            lambda r: f"{r.primary_metric} ({'higher' if r.higher_is_better else 'lower'} is better)",
        ),
    ]
    for what, compared, rule in rules:
        for first, other in zip(compared[:1] * len(compared), compared):
            if rule(other) != rule(first):
                raise MixedRecords(
                    f"{first.id} and {other.id} differ in {what}: {_short(rule(first))} and {_short(rule(other))}; "
                    "run the older one again"
                )


def _group(
    key: tuple[str, int, str], chosen: Iterable[RunRecord], live: dict[str, RunRecord], failures: list[FailureRecord]
) -> Group:
    mine = [r for r in chosen if (r.benchmark, r.benchmark_version, r.pair) == key]
    students: dict[str, dict[int, RunRecord]] = {}
    for record in sorted(mine, key=lambda r: (r.method.lower() != PLAIN, r.method.lower(), r.seed)):
        if not is_teacher(record.method):
            students.setdefault(record.method.lower(), {})[record.seed] = record
    named = sorted({r.teacher_record for r in mine if r.teacher_record} & live.keys())
    teachers = [live[k] for k in named] or [r for r in mine if is_teacher(r.method)]
    metric = mine[0].primary_metric  # a teacher of another benchmark may have been measured otherwise
    teachers = [t for t in teachers if metric in t.metrics]
    failed = [f for f in failures if (f.benchmark, f.pair) == (key[0], key[2])]
    failed = [f for f in failed if record_id(f.benchmark, f.pair, f.method, f.seed) not in live]
    _check_baseline(students)
    _check_initial(students)
    return Group(*key, students, teachers, _warnings(students, teachers, failed), failed)


def _check_baseline(students: dict[str, dict[int, RunRecord]]) -> None:
    plain = students.get(PLAIN, {})
    for seeds in students.values():
        if not plain.keys() & seeds.keys():
            first = next(iter(seeds.values()))
            wanted = record_id(first.benchmark, first.pair, PLAIN, first.seed)
            raise MissingBaseline(
                f"{first.id} has no plain student on any seed of its method; run it: {wanted} is missing"
            )


def _check_initial(students: dict[str, dict[int, RunRecord]]) -> None:
    plain = students.get(PLAIN, {})
    first: dict[int, RunRecord] = dict(plain)
    for seeds in students.values():
        for seed, record in seeds.items():
            start = first.setdefault(seed, record)
            if record.student != start.student:
                continue  # a method that deploys another network, or a variant of the student
            if record.initial_hash != start.initial_hash:
                raise MixedRecords(
                    f"{start.id} and {record.id} started from different weights: initial hash "
                    f"{_short(start.initial_hash)} and {_short(record.initial_hash)}; run both again"
                )


def _warnings(
    students: dict[str, dict[int, RunRecord]], teachers: list[RunRecord], failed: list[FailureRecord]
) -> list[str]:
    said = []
    if not teachers:
        said.append("no teacher record: the share of the teacher gap closed is unknown")
    plain = students.get(PLAIN, {})
    for seeds in students.values():
        name = next(iter(seeds.values())).method
        lone = sorted(seeds.keys() - plain.keys())
        if lone:
            said.append(f"{name}: no plain student on {_seeds(lone)}, left out of the paired gain")
        short = sorted(plain.keys() - seeds.keys())
        if short:
            said.append(f"{name}: no record on {_seeds(short)}, which the plain student has")
        for status in FLAGGED:
            marked = sorted(s for s, r in seeds.items() if r.status == status)
            if marked:
                said.append(f"{name}: {_seeds(marked)} {status}, shown but not ranked")
    said += [f"{t.id}: {t.status}" for t in teachers if t.status in FLAGGED]
    said += [f"{f.method}: seed {f.seed} failed ({f.error})" for f in failed]
    return said


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:12] + "…"
