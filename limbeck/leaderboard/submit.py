"""Contributions: checks records and writes them where a pull request wants them; two contributions never collide.

A record's place is its id below results/, so one run has one file. Whoever comes second with the same run is told so:
a run made again elsewhere is a reproduction, which `limbeck leaderboard reproduce` compares, not a second record. New
benchmarks carry their contributor's name, 'alice.flowers', as part of the id: a record cannot be renamed afterwards,
because its name is in its config and so in its config's hash, and two people's 'flowers' on different data would make
the whole folder refuse to load.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory

from limbeck.engine.config import PLAIN, PairConfig, TrainedTeacher, expand, is_teacher, load_pair
from limbeck.engine.record import RunRecord, config_hash, read_record, record_id, record_path, write_record
from limbeck.engine.weights import sha256_file
from limbeck.errors import ConfigError, CorruptFile
from limbeck.leaderboard.checks import DuplicateRecord, MissingBaseline, ResultsError, teacher_ids
from limbeck.leaderboard.shipped import shipped_pairs
from limbeck.leaderboard.store import load_results

SEEDS = 2  # fewer have no interval, so they could not be ranked
_OWN = re.compile(r"[a-z0-9][a-z0-9-]*\.[a-z0-9][a-z0-9._-]*")


class SubmitError(ResultsError):
    """A record cannot be contributed as it is; says what to do."""


@dataclass(frozen=True)
class Submission:
    """What a contribution writes.

    written: new files; present: files that already hold exactly these records. notes: what reviewers will ask.
    """

    checkout: Path
    written: tuple[Path, ...]
    present: tuple[Path, ...]
    notes: tuple[str, ...] = ()

    @property
    def lines(self) -> list[str]:
        """What to commit, for people."""
        if not self.written:
            return [*self.notes, "every record is there already; nothing to commit"]
        files = [path.relative_to(self.checkout).as_posix() for path in self.written]
        folders = sorted({Path(f).parents[1].as_posix() for f in files})
        return [
            *self.notes,
            *(f"wrote {name}" for name in files),
            "commit them:",
            f"  cd {self.checkout}",
            f"  git add {' '.join(folders)}",
            f"  git commit -m 'Records of {', '.join(sorted({Path(f).parts[1] for f in files}))}'",
            "  limbeck leaderboard build --readme README.md --out out/leaderboard",
        ]


def submit(
    records: Sequence[str | Path],
    *,
    checkout: str | Path = ".",
    weights: str | Path | None = None,
    config: str | None = None,
    licences: Mapping[str, str] | None = None,
) -> Submission:
    """Check records and write them below a checkout's results/, all of them or none.

    Args:
        records: JSON files of runs.
        checkout: a checkout of Limbeck, which has results/.
        weights: a student.safetensors, whose sha256 has to be in one of the records; it is not copied, for results/
            holds records alone.
        config: the config of a benchmark that Limbeck does not ship, by name or path.
        licences: data set → its licence; None asks nothing.
    Raises: CorruptFile for a record that does not read or weights of another run; SubmitError, MissingBaseline,
        DuplicateRecord and what `load_results` raises for records that cannot stand beside those that are there.
    """
    root = Path(checkout)
    results = root / "results"
    if not results.is_dir():
        raise ConfigError(f"{root}: holds no folder results/; name a checkout of Limbeck with --to")
    new = _read(records)
    pairs = _pairs(new.values(), config)
    for path, record in new.items():
        _check_status(path, record, licences)
        _check_name(path, record, own=(record.benchmark, record.pair) not in pairs[1])
        _check_config(path, record, pairs[0][record.benchmark, record.pair])
    fresh = [r for r in new.values() if not _present(results, r)]
    _check_seeds(results, fresh)
    _check_together(results, fresh)
    notes = [*_dirty(fresh), *_check_weights(weights, new.values())]
    written = tuple(write_record(results, record) for record in fresh)
    present = tuple(record_path(results, r.id) for r in new.values() if r not in fresh)
    return Submission(root, written, present, tuple(notes))


def _read(paths: Sequence[str | Path]) -> dict[Path, RunRecord]:
    found: dict[str, Path] = {}
    records: dict[Path, RunRecord] = {}
    for path in dict.fromkeys(map(Path, paths)):
        record = read_record(path)
        if record.id in found:
            raise DuplicateRecord(f"{found[record.id]} and {path} hold the same run {record.id}; name one of them")
        found[record.id], records[path] = path, record
    if not records:
        raise ConfigError("no record is named; name the JSON files of runs")
    return records


def _pairs(
    records: Iterable[RunRecord], config: str | None
) -> tuple[dict[tuple[str, str], PairConfig | None], set[tuple[str, str]]]:
    """Each record's pair config, and which of them Limbeck ships."""
    wanted = {(r.benchmark, r.pair) for r in records}
    shipped = {key: pair for key, (_, pair) in shipped_pairs(wanted).items()}
    found: dict[tuple[str, str], PairConfig | None] = {**dict.fromkeys(wanted), **shipped}
    if config is not None:
        made = load_pair(config)
        found |= {(made.benchmark, made.pair): made} if (made.benchmark, made.pair) in wanted - shipped.keys() else {}
    return found, set(shipped)


def _check_status(path: Path, record: RunRecord, licences: Mapping[str, str] | None) -> None:
    if record.status != "ok":
        raise SubmitError(f"{path}: its status is {record.status!r}; only a whole run is a record, run it again")
    if record.recipe.selection == "best_test":
        raise SubmitError(f"{path}: selected on the test split, which only reported figures may be; run it again")
    if licences is not None and record.data.name not in licences:
        raise SubmitError(
            f"{path}: no licence is known of data set {record.data.name!r}; add its terms to limbeck/zoo/terms.py in "
            "the same pull request"
        )


def _check_name(path: Path, record: RunRecord, *, own: bool) -> None:
    if own and not _OWN.fullmatch(record.benchmark):
        raise SubmitError(
            f"{path}: Limbeck has no pair {record.benchmark}/{record.pair}; name the benchmark of your own config "
            f"'YOU.{record.benchmark}' and run it again, so that no two contributions share a name"
        )


def _check_config(path: Path, record: RunRecord, pair: PairConfig | None) -> None:
    """Whether the record's config is what the pair's config gives today, but for the teacher's own figures."""
    if pair is None:
        raise SubmitError(
            f"{path}: no config of {record.benchmark}/{record.pair} is known, so nobody could run it again; name yours "
            "with --config, and add it to the pull request"
        )
    members = record.config.get("model", {}).get("members", {})
    trained = {
        name: TrainedTeacher(m.get("weights"), m.get("sha256"), next(iter((m.get("expected") or {}).values()), None))
        for name, m in members.items()
        if m.get("type") == "frozen"
    }
    current = expand(pair, record.method, record.seed, trained=trained)
    found = config_hash(current.model_dump(mode="json"))
    if found != record.config_hash:
        raise SubmitError(
            f"{path}: was made with another config than {record.benchmark}/{record.pair} has today (sha256 "
            f"{record.config_hash[:12]}…, now {found[:12]}…); run it again with this version"
        )


def _present(results: Path, record: RunRecord) -> bool:
    """Whether this very record is there. Raises: DuplicateRecord when another one of the same run is."""
    path = record_path(results, record.id)
    if not path.is_file():
        return False
    if read_record(path) == record:
        return True
    raise DuplicateRecord(
        f"{path} already holds the run {record.id}, with other figures or of another machine; it is not replaced: "
        "publish yours in a repository of your own and compare them with: limbeck leaderboard reproduce"
    )


def _check_seeds(results: Path, records: Sequence[RunRecord]) -> None:
    """Every student has its plain one; methods, but for students that teach, have seeds for an interval."""
    ids = {r.id for r in records}
    teach = {identity for r in records for identity in teacher_ids(r)}
    for record in records:
        if is_teacher(record.method):
            continue
        wanted = record_id(record.benchmark, record.pair, PLAIN, record.seed)
        if wanted not in ids and not record_path(results, wanted).is_file():
            raise MissingBaseline(f"{record.id} has no plain student of its seed; run it and submit it too: {wanted}")
        if record.method.lower() == PLAIN or record.id in teach:
            continue
        folder = record_path(results, record.id).parent
        seeds = {r.seed for r in records if record_path(results, r.id).parent == folder}
        seeds |= {int(p.stem[4:]) for p in folder.glob("seed*.json") if p.stem[4:].isdecimal()}
        if len(seeds) < SEEDS:
            raise SubmitError(
                f"{record.id} is the only seed of {record.method}; {SEEDS} or more give an interval: run another one"
            )


def _check_together(results: Path, records: Sequence[RunRecord]) -> None:
    """Read the new records beside those of their benchmarks, as the leaderboard will."""
    if not records:
        return
    with TemporaryDirectory() as name:
        folder = Path(name) / "results"
        for benchmark in {r.benchmark for r in records}:
            if (results / benchmark).is_dir():
                copytree(results / benchmark, folder / benchmark)
        for record in records:
            write_record(folder, record)
        load_results(folder)


def _check_weights(weights: str | Path | None, records: Iterable[RunRecord]) -> list[str]:
    if weights is None:
        return []
    file = Path(weights)
    if not file.is_file():
        raise ConfigError(f"{file}: no such file; name the student.safetensors of one of the runs")
    digest = sha256_file(file)
    owner = next((r.id for r in records if r.student_sha256 == digest), None)
    if owner is None:
        raise CorruptFile(f"{file}: sha256 is {digest[:12]}…, which is of none of the records; name theirs")
    return [f"{file} is the student of {owner}; results/ holds records alone: put it into the zoo with limbeck zoo add"]


def _dirty(records: Iterable[RunRecord]) -> list[str]:
    changed = ", ".join(r.id for r in records if r.environment.git_dirty)
    return [f"made from a checkout with changes; say which in the pull request: {changed}"] if changed else []


def record_files(places: Iterable[str | Path]) -> list[Path]:
    """The records that some files and folders name, failure records left out."""
    found: list[Path] = []
    for place in map(Path, places):
        inside = sorted(place.rglob("*.json")) if place.is_dir() else [place]
        found += [p for p in inside if not p.name.endswith(".failed.json") and not p.name.startswith(".")]
    return found
