"""The store: reads folders of records, refuses what must not be compared, and groups what may.

Everything that tables need is in columns, see `limbeck.leaderboard.index`; a record is read when it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from limbeck.engine.config import PLAIN
from limbeck.engine.record import FailureRecord, RunRecord, record_id, record_path
from limbeck.engine.variant import split_variant
from limbeck.errors import CorruptFile, UnknownName
from limbeck.leaderboard.checks import DuplicateRecord, MisplacedRecord, NoResults, Runs
from limbeck.leaderboard.gather import check_agree
from limbeck.leaderboard.index import Report, list_files, read_index
from limbeck.leaderboard.places import Places, folders_of, spelled
from limbeck.leaderboard.runs import check_chosen, check_group, grouped, reference_names, reference_rows, suspicious
from limbeck.leaderboard.shelf import Seeds, Shelf

if TYPE_CHECKING:
    import polars as pl

FLAGGED = ("unreliable", "partial")


@dataclass(frozen=True)
class Group:
    """Records that may be compared: one benchmark version and one pair.

    runs: its runs as columns, see `limbeck.leaderboard.runs.grouped`.
    shelf: reads its records.
    """

    benchmark: str
    version: int
    pair: str
    runs: pl.DataFrame = field(repr=False, compare=False)
    shelf: Shelf = field(repr=False, compare=False)
    failures: list[FailureRecord] = field(default_factory=list)

    @cached_property
    def students(self) -> Runs:
        """Plain student and methods, by name in lower case, then by seed; flagged ones are included."""
        return self._seeds("student")

    @cached_property
    def variants(self) -> Runs:
        """The same of methods with one option at another value, such as 'kd@temperature=2.0'; never ranked."""
        return self._seeds("variant")

    @cached_property
    def teachers(self) -> list[RunRecord]:
        """The teacher records that the methods use, and the pair's own teachers."""
        return [self.shelf[i] for i, kind in self.runs.select("id", "kind").iter_rows() if kind == "teacher"]

    @cached_property
    def first(self) -> dict[str, Any]:
        """The columns of `sample`: what is the same in all, without reading a record."""
        kinds = self.runs["kind"]
        found = (self.runs.filter(kinds == kind) for kind in ("student", "variant", "teacher"))
        return next(rows for rows in found if len(rows)).row(0, named=True)

    @cached_property
    def warnings(self) -> list[str]:
        """What is missing or flagged, one line each."""
        return _warnings(self.runs, self.failures)

    def _seeds(self, kind: str) -> Runs:
        found: dict[str, dict[int, str]] = {}
        for of, row, seed, identity in self.runs.select("kind", "row", "seed", "id").iter_rows():
            if of == kind:
                found.setdefault(row, {})[seed] = identity
        return {row: Seeds(ids, self.shelf) for row, ids in found.items()}

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
        return self.shelf[self.first["id"]]

    @property
    def references(self) -> Runs:
        """The teachers by the name of their row, then by seed; 'teacher' first; see `reference_names`."""
        known = [(r.method.lower(), r.benchmark, r.pair) for r in self.teachers]
        rows: dict[str, dict[int, RunRecord]] = {}
        for name, record in zip(reference_names(known, self.benchmark, self.pair), self.teachers):
            rows.setdefault(name, {})[record.seed] = record
        return rows

    @property
    def reference(self) -> str | None:
        """The row of `references` that the gap closed is measured by: of the record that most runs of methods name."""
        return next(iter(reference_rows(self.runs).values()), None)

    def method(self, name: str) -> Mapping[int, RunRecord]:
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
    """Checked folders of records.

    index: every record as columns, superseded ones too, see `limbeck.leaderboard.index_row`; and its `folder`.
    runs: the runs of the groups, one after the other.
    """

    folders: tuple[Path, ...]
    groups: list[Group]
    index: pl.DataFrame = field(repr=False, compare=False)
    runs: pl.DataFrame = field(repr=False, compare=False)

    @cached_property
    def paths(self) -> dict[str, Path]:
        """The files by record id."""
        return {identity: record_path(folder, identity) for folder, identity in self.index["folder", "id"].iter_rows()}

    @property
    def where(self) -> str:
        """The folders in a sentence."""
        return spelled(self.folders)

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def benchmark(self, name: str) -> list[Group]:
        """The groups of a benchmark's highest version.

        Raises: UnknownName.
        """
        found = [g for g in self.groups if g.benchmark == name]
        if not found:
            raise UnknownName("benchmark", name, {g.benchmark for g in self.groups}, f"in {self.where}")
        version = max(g.version for g in found)
        return [g for g in found if g.version == version]


def load_results(folder: Places, *, benchmarks: Collection[str] | None = None, report: Report | None = None) -> Results:
    """Read, check and group every record below a folder, or below several; superseded ones are left out.

    Args:
        folder: of several, the same record in two of them counts once.
        benchmarks: keep these alone; the others are read but not judged.
        report: called with how many new files are parsed, of how many.
    Raises: NoResults, CorruptFile, DuplicateRecord, MisplacedRecord, MissingBaseline, MixedRecords, UnknownName.
    """
    folders = folders_of(folder)
    index, failed = _read(folders, report)
    names = set(benchmarks or ())
    for name in benchmarks or ():
        known = set(index["benchmark"].unique())
        if name not in known:
            raise UnknownName("benchmark", name, known, f"in {spelled(folders)}")
    live = index.filter(~index["status"].is_in(["superseded", "failed"]))
    chosen = live.filter(live["benchmark"].is_in(list(names))) if names else live
    if chosen.is_empty():
        raise NoResults(f"{spelled(folders)}: every record is superseded or failed; run the suite again")
    failures = _failures(failed, live)
    shelf = Shelf(*folders)
    check_chosen(chosen, shelf)
    places, runs = grouped(chosen, live)
    groups = _groups(places, runs, shelf, failures)
    for number in suspicious(runs):
        check_group({**groups[number].students, **groups[number].variants})
    return Results(folders, list(groups.values()), index, runs)


def _read(folders: Sequence[Path], report: Report | None) -> tuple[pl.DataFrame, list[Path]]:
    """The index of the folders' records in the order of their paths, and the files of failure records."""
    import polars as pl

    listed, found = [], []
    for root in folders:
        if not root.is_dir():
            raise NoResults(f"{root}: no such folder of records; make some with: limbeck bench run demo")
        files = list_files(root)
        index = read_index(root, files, report)
        if index.is_empty():
            raise NoResults(f"{root}: holds no record; make some with: limbeck bench run demo")
        _check_places(root, index)
        listed.append(files)
        found.append(index.with_columns(folder=pl.lit(str(root))))
    failed = [path for files in listed for path in files.failures]
    if len(found) == 1:
        return found[0], failed
    check_agree(folders, listed)
    whole = pl.concat(found).unique("path", keep="first", maintain_order=True)
    return whole.sort(pl.col("path").str.replace_all("/", "\0", literal=True)), failed


def _check_places(root: Path, index: pl.DataFrame) -> None:
    twice = index.filter(index["id"].is_duplicated())
    if len(twice):
        identity = twice["id"][0]
        first, other, *_ = (root / path for path in twice.filter(twice["id"] == identity)["path"])
        raise DuplicateRecord(f"{first} and {other} hold the same run {identity}; delete one")
    for path, identity in index.filter(index["path"] != index["id"] + ".json").select("path", "id").head(1).iter_rows():
        raise MisplacedRecord(
            f"{root / path}: is the record of {identity}; move it to {root / identity}.json or delete it"
        )


def _groups(
    places: pl.DataFrame, runs: pl.DataFrame, shelf: Shelf, failures: Mapping[tuple[str, str], list[FailureRecord]]
) -> dict[int, Group]:
    """The groups by number; each has its slice of the runs."""
    lengths = dict(runs.group_by("group", maintain_order=True).len().iter_rows())
    groups, start = {}, 0
    for number, benchmark, version, pair in places.iter_rows():
        mine = runs.slice(start, lengths[number])
        start += lengths[number]
        groups[number] = Group(benchmark, version, pair, mine, shelf, failures.get((benchmark, pair), []))
    return groups


def _failures(paths: Sequence[Path], live: pl.DataFrame) -> dict[tuple[str, str], list[FailureRecord]]:
    """Failures of runs that have no record by now, by benchmark and pair; of one run, what the first place says."""
    done = set(live["id"]) if paths else set()
    found: dict[tuple[str, str], list[FailureRecord]] = {}
    for failure in _read_failures(paths):
        identity = record_id(failure.benchmark, failure.pair, failure.method, failure.seed)
        if identity not in done:
            done.add(identity)
            found.setdefault((failure.benchmark, failure.pair), []).append(failure)
    return found


def _read_failures(paths: Sequence[Path]) -> list[FailureRecord]:
    found = []
    for path in paths:
        try:
            found.append(FailureRecord.model_validate(json.loads(path.read_text(encoding="utf-8"))))
        except (ValidationError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CorruptFile(f"{path}: not a whole failure record; delete it and run it again") from error
    return found


def _warnings(runs: pl.DataFrame, failed: list[FailureRecord]) -> list[str]:
    said = []
    students: dict[str, dict[int, str]] = {}  # status by seed
    names: dict[str, str] = {}
    teachers: list[tuple[str, str]] = []
    for kind, row, method, seed, status, identity in runs.select(
        "kind", "row", "method", "seed", "status", "id"
    ).iter_rows():
        if kind == "student":
            students.setdefault(row, {})[seed] = status
            names.setdefault(row, method)
        elif kind == "teacher":
            teachers.append((identity, status))
    if not teachers:
        said.append("no teacher record: the share of the teacher gap closed is unknown")
    plain = students.get(PLAIN, {})
    for row, seeds in students.items():
        lone = sorted(seeds.keys() - plain.keys())
        if lone:
            said.append(f"{names[row]}: no plain student on {_spelled(lone)}, left out of the paired gain")
        short = sorted(plain.keys() - seeds.keys())
        if short:
            said.append(f"{names[row]}: no record on {_spelled(short)}, which the plain student has")
        for flag in FLAGGED:
            marked = sorted(s for s, status in seeds.items() if status == flag)
            if marked:
                said.append(f"{names[row]}: {_spelled(marked)} {flag}, shown but not ranked")
    said += [f"{identity}: {status}" for identity, status in teachers if status in FLAGGED]
    # a variant's failure is told with its ablation
    said += [f"{f.method}: seed {f.seed} failed ({f.error})" for f in failed if "@" not in f.method]
    return said


def _same_variant(a: str, b: str) -> bool:
    """Whether two names mean one variant: 'KD@temperature=2' and 'kd@temperature=2.0' do."""
    (base, one), (other, two) = split_variant(a), split_variant(b)
    return base.lower() == other.lower() and one == two


def _name(seeds: Mapping[int, RunRecord]) -> str:
    return next(iter(seeds.values())).method


def _spelled(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
