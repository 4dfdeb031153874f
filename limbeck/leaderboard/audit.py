"""Audit: reads records one by one and names what was tampered with: a record, its weights, or the data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.engine.record import RunRecord, read_record, record_path
from limbeck.engine.suite import benchmarks_of
from limbeck.engine.weights import check_sha256, sha256_json
from limbeck.errors import ConfigError, CorruptFile, DataMissing, ExtraMissing, UnknownName
from limbeck.leaderboard.checks import NoResults, teacher_ids
from limbeck.leaderboard.gather import check_agree
from limbeck.leaderboard.index import list_files
from limbeck.leaderboard.places import Places, find_record, folders_of, spelled
from limbeck.leaderboard.saved import both, predictions_file, verify_predictions
from limbeck.leaderboard.verify import Evaluate, Verification, verify_record, with_runs

DataHash = Callable[[Mapping[str, Any]], str | None]


def named_files(results: Places, names: Sequence[str] | None) -> list[Path]:
    """The record files that some names mean: a file, a record's id, a folder of ids, a benchmark or a suite.

    Raises: NoResults; DuplicateRecord; UnknownName with near benchmarks for a name that means nothing.
    """
    folders = folders_of(results)
    absent = [f for f in folders if not f.is_dir()]
    if absent and not (names and all(Path(n).is_file() for n in names)):
        raise NoResults(f"{absent[0]}: no such folder of records; make some with: limbeck bench run demo")
    if len(folders) > 1 and not absent:
        check_agree(folders, [list_files(f) for f in folders])
    found: dict[Path, None] = {}
    for name in names or [""]:
        file, place = Path(name), find_record(folders, name) if name else None
        if name.endswith(".json") and file.is_file():
            found[file] = None
        elif place is not None:
            found[place] = None
        else:
            found |= dict.fromkeys(_of_folders(folders, name))
    if not found:
        raise NoResults(f"{spelled(folders)}: holds no record; make some with: limbeck bench run demo")
    return list(found)


def _of_folders(folders: Sequence[Path], name: str) -> list[Path]:
    names = [n for n in benchmarks_of([name]) or [] if ".." not in Path(n).parts] if name else [""]
    found: dict[Path, Path] = {}  # a record that lies in several of the folders is one
    for root in folders:
        paths = [p for n in names if (root / n).is_dir() for p in sorted((root / n).rglob("*.json"))]
        for path in paths:
            if not path.name.endswith(".failed.json") and not path.name.startswith("."):
                found.setdefault(path.relative_to(root), path)
    if name and not found:
        known = {p.name for root in folders for p in root.iterdir() if p.is_dir()}
        raise UnknownName("benchmark or record", name, known, f"in {spelled(folders)}")
    return list(found.values())


def audit(
    files: Iterable[Path],
    evaluate: Evaluate,
    weights: Mapping[str, Path],
    *,
    data_hash: DataHash,
    results: Places | None = None,
    runs: Path | None = None,
    predictions_only: bool = False,
) -> Iterator[Verification]:
    """Verify record files one after the other; what was changed is named, and the next one is looked at.

    A record's config is hashed again, its place is compared with its id, its teachers' records with the weights that
    it was taught by; the test split is hashed again; weights are hashed and evaluated again; saved predictions are
    hashed and the figures made again from them. Superseded and failed records are left out.

    Args:
        evaluate, weights: as for `verify_record`; runs: as for `with_runs`, and '<record id>/predictions.safetensors'.
        data_hash: gives the content hash of a config's test split on this machine, None where a config has none.
        results: the folders that ids are below; None does not look at places and teachers.
        predictions_only: look neither at weights nor at the data set; a record whose predictions are not among `runs`
            has the verdict 'no predictions'.
    Raises: ConfigError when `runs` is no folder, or for predictions_only without it.
    """
    if predictions_only and runs is None:
        raise ConfigError("saved predictions lie in a folder of runs; name it, such as out/demo/runs, with --runs")
    for file in files:
        try:
            record = read_record(file)
        except CorruptFile as error:
            yield Verification(str(file), "changed", changed=f"record: {error}")
            continue
        if record.status not in ("superseded", "failed"):
            said = _wrong_record(file, record, results)
            if said:
                yield Verification(record.id, "changed", changed=said)
                continue
            offered = with_runs(weights, [record], runs)
            path = predictions_file(record, runs)
            saved = None if path is None else verify_predictions(record, path)
            if predictions_only:
                yield saved or Verification(record.id, "no predictions")
            else:
                yield both(_by_weights(record, evaluate, offered, data_hash), saved)


def _by_weights(
    record: RunRecord, evaluate: Evaluate, weights: Mapping[str, Path], data_hash: DataHash
) -> Verification:
    said = _wrong_weights(record, weights)
    if said:
        return Verification(record.id, "changed", changed=said)
    try:
        found = data_hash(record.config)
    except (DataMissing, ExtraMissing) as error:
        return Verification(record.id, "not here", changed=str(error))
    if found is not None and found != record.data.content_hash:
        return Verification(
            record.id,
            "changed",
            changed=f"data set: {record.data.name} ({record.data.split}) on this machine has the content hash "
            f"{found[:12]}…, the record {record.data.content_hash[:12]}…; get the data again",
        )
    try:
        return verify_record(record, evaluate, weights)
    except (DataMissing, ExtraMissing) as error:
        return Verification(record.id, "not here", changed=str(error))


def _wrong_record(file: Path, record: RunRecord, results: Places | None) -> str:
    """What of a record contradicts its place or its teachers' records; empty where nothing does."""
    folders = () if results is None else folders_of(results)
    root = next((f for f in folders if file.resolve().is_relative_to(f.resolve())), None)
    if root is None:
        return ""
    if file.resolve() != record_path(root, record.id).resolve():
        return f"record: {file} says that it is {record.id}; it was moved or edited"
    members = record.config.get("model", {}).get("members", {}) if isinstance(record.config.get("model"), dict) else {}
    taught_by = {m.get("weights"): m.get("sha256") for m in members.values() if isinstance(m, dict)}
    for identity in teacher_ids(record):
        path, expected = find_record(folders, identity), taught_by.get(f"run://{identity}")
        if expected and path is not None:
            try:
                found = read_record(path).student_sha256
            except CorruptFile:
                continue  # named when its own turn comes
            if found != expected:
                return (
                    f"record: its teacher's weights have sha256 {expected[:12]}…, but {path} has {found[:12]}…; one of "
                    "the two was edited"
                )
    return ""


def _wrong_weights(record: RunRecord, weights: Mapping[str, Path]) -> str:
    path = weights.get(record.student_sha256)
    if path is None:
        return ""
    try:
        check_sha256(path, record.student_sha256)
    except CorruptFile as error:
        return f"weights: {error}"
    return ""


def content_hashes(known: dict[str, str] | None = None) -> DataHash:
    """A function that gives the content hash of a config's test split as it is on this machine, each read once."""
    kept: dict[str, str] = {} if known is None else known

    def found(config: Mapping[str, Any]) -> str | None:
        from limbeck.engine.config import DataConfig, parse
        from limbeck.engine.evaluate import build_dataset

        if "data" not in config:
            return None
        data: DataConfig = parse(DataConfig, config["data"], "record config")
        key = sha256_json(data.test)
        if key not in kept:
            kept[key] = str(build_dataset(data, "test").content_hash)
        return kept[key]

    return found


def counts(found: Iterable[Verification]) -> dict[str, int]:
    """How many have each verdict; 'no predictions', 'changed' and 'not here' only where there are some."""
    verdicts = [v.verdict for v in found]
    always = {v: verdicts.count(v) for v in ("holds", "off", "no weights")}
    return always | {v: verdicts.count(v) for v in ("no predictions", "changed", "not here") if v in verdicts}
