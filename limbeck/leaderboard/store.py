"""The store: reads a folder of records, refuses what must not be compared, and groups what may."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from limbeck.engine.config import PLAIN, TEACHER, is_teacher
from limbeck.engine.record import FailureRecord, RunRecord, iter_records, record_id
from limbeck.engine.variant import split_variant
from limbeck.errors import CorruptFile, UnknownName
from limbeck.leaderboard.checks import (
    DuplicateRecord,
    MisplacedRecord,
    NoResults,
    Runs,
    check_baseline,
    check_initial,
    check_same,
    teacher_ids,
)

FLAGGED = ("unreliable", "partial")


@dataclass(frozen=True)
class Group:
    """Records that may be compared: one benchmark version and one pair.

    students: plain student and methods, by name in lower case, then by seed; flagged ones are included.
    variants: the same of methods with one option at another value, such as 'kd@temperature=2.0'; never ranked.
    teachers: the teacher records that the methods use, and the pair's own teachers.
    """

    benchmark: str
    version: int
    pair: str
    students: Runs
    teachers: list[RunRecord]
    variants: Runs = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    failures: list[FailureRecord] = field(default_factory=list)

    @property
    def name(self) -> str:
        """'demo/resnet20-resnet8', what tables and markers are called by."""
        return f"{self.benchmark}/{self.pair}"

    @property
    def records(self) -> list[RunRecord]:
        """Every record of the group: teachers, students, variants."""
        runs = [*self.students.values(), *self.variants.values()]
        return [*self.teachers, *(r for seeds in runs for r in seeds.values())]

    @property
    def sample(self) -> RunRecord:
        """One record, for what is the same in all: task, data, primary metric, selection."""
        for seeds in (*self.students.values(), *self.variants.values()):
            return next(iter(seeds.values()))
        return self.teachers[0]

    @property
    def references(self) -> Runs:
        """The teachers by the name of their row, then by seed; 'teacher' first.

        A student that teaches, such as a teacher assistant, is in the row 'teacher'. Teachers of one name from two
        pairs are two rows; the other pair's says where it is from.
        """
        origins: dict[tuple[str, str, str, str], list[RunRecord]] = {}
        for record in self.teachers:
            method = record.method.lower()
            name = method if is_teacher(method) else TEACHER
            origins.setdefault((name, record.benchmark, record.pair, method), []).append(record)
        shared = Counter(name for name, *_ in origins)
        rows: Runs = {}
        for (name, *pair, method), records in origins.items():
            foreign = shared[name] > 1 and (name != method or pair != [self.benchmark, self.pair])
            origin = "/".join(pair if name == method else [*pair, method])
            rows[f"{name} ({origin})" if foreign else name] = {r.seed: r for r in records}
        return rows

    @property
    def reference(self) -> str | None:
        """The row of `references` that the gap closed is measured by: of the record that most runs of methods name."""
        named = Counter(r.teacher_record for seeds in self.students.values() for r in seeds.values())
        votes = {
            name: (max(named[r.id] for r in seeds.values()), name == TEACHER) for name, seeds in self.references.items()
        }
        return max(votes, key=lambda name: votes[name]) if votes else None

    def method(self, name: str) -> dict[int, RunRecord]:
        """The records by seed of a method, a teacher, or a variant such as 'KD@temperature=2.0'.

        Raises: UnknownName with the nearest methods of this group; ConfigError for a variant that does not read.
        """
        key = name.lower()
        found = self.students.get(key) or self.references.get(key) or self.variants.get(key)
        if found is None and "@" in name:
            found = next((seeds for seeds in self.variants.values() if _same_variant(_name(seeds), name)), None)
        if found is None:
            # variants stay out of the suggestions unless one was asked for
            known = [self.students, self.references, *([self.variants] if "@" in name else [])]
            raise UnknownName("method", name, [_name(s) for runs in known for s in runs.values()], f"in {self.name}")
        return found


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
        check_same([r for r in chosen if (r.benchmark, r.benchmark_version) == benchmark])
    keys = sorted({(r.benchmark, r.benchmark_version, r.pair) for r in chosen})
    groups = [_group(key, chosen, live, failures) for key in keys]
    used = {identity for r in chosen for identity in teacher_ids(r)}
    groups = [g for g in groups if g.students or g.variants or not all(t.id in used for t in g.teachers)]
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


def _group(
    key: tuple[str, int, str], chosen: Iterable[RunRecord], live: dict[str, RunRecord], failures: list[FailureRecord]
) -> Group:
    mine = [r for r in chosen if (r.benchmark, r.benchmark_version, r.pair) == key]
    students: Runs = {}
    variants: Runs = {}
    for record in sorted(mine, key=lambda r: (r.method.lower() != PLAIN, r.method.lower(), r.seed)):
        if not is_teacher(record.method):
            runs = students if split_variant(record.method)[1] is None else variants
            runs.setdefault(record.method.lower(), {})[record.seed] = record
    teachers = _teachers(mine, live)
    failed = [f for f in failures if (f.benchmark, f.pair) == (key[0], key[2])]
    failed = [f for f in failed if record_id(f.benchmark, f.pair, f.method, f.seed) not in live]
    every = {**students, **variants}
    check_baseline(every)
    check_initial(every)
    return Group(*key, students, teachers, variants, _warnings(students, teachers, failed), failed)


def _teachers(mine: Sequence[RunRecord], live: dict[str, RunRecord]) -> list[RunRecord]:
    """The teachers that a pair's runs use, and of its own those that no run uses under their name."""
    metric = mine[0].primary_metric  # a teacher of another benchmark may have been measured otherwise
    used = {identity: live[identity] for r in mine for identity in teacher_ids(r) if identity in live}
    names = {t.method.lower() for t in used.values()}
    own = [r for r in mine if is_teacher(r.method) and r.method.lower() not in names]
    found = [t for t in (*used.values(), *own) if metric in t.metrics]
    return sorted(found, key=lambda t: (t.method.lower() != TEACHER, t.method.lower(), t.benchmark, t.pair, t.seed))


def _warnings(students: Runs, teachers: list[RunRecord], failed: list[FailureRecord]) -> list[str]:
    said = []
    if not teachers:
        said.append("no teacher record: the share of the teacher gap closed is unknown")
    plain = students.get(PLAIN, {})
    for seeds in students.values():
        name = _name(seeds)
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
    # a variant's failure is told with its ablation
    said += [f"{f.method}: seed {f.seed} failed ({f.error})" for f in failed if "@" not in f.method]
    return said


def _same_variant(a: str, b: str) -> bool:
    """Whether two names mean one variant: 'KD@temperature=2' and 'kd@temperature=2.0' do."""
    (base, one), (other, two) = split_variant(a), split_variant(b)
    return base.lower() == other.lower() and one == two


def _name(seeds: dict[int, RunRecord]) -> str:
    return next(iter(seeds.values())).method


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
