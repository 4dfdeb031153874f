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
from limbeck.leaderboard.saved import both, predictions_file, verify_predictions
from limbeck.leaderboard.verify import Evaluate, Verification, verify_record, with_runs

DataHash = Callable[[Mapping[str, Any]], str | None]


def named_files(results: Path, names: Sequence[str] | None) -> list[Path]:
    """The record files that some names mean: a file, a record's id, a folder of ids, a benchmark or a suite.

    Raises: NoResults; UnknownName with near benchmarks for a name that means nothing.
    """
    if not results.is_dir() and not (names and all(Path(n).is_file() for n in names)):
        raise NoResults(f"{results}: no such folder of records; make some with: limbeck bench run demo")
    found: dict[Path, None] = {}
    for name in names or [""]:
        file, place = Path(name), record_path(results, name)
        if name.endswith(".json") and file.is_file():
            found[file] = None
        elif name and place.is_file() and place.is_relative_to(results):
            found[place] = None
        else:
            found |= dict.fromkeys(_of_folders(results, name))
    if not found:
        raise NoResults(f"{results}: holds no record; make some with: limbeck bench run demo")
    return list(found)


def _of_folders(results: Path, name: str) -> list[Path]:
    names = (benchmarks_of([name]) or []) if name else [""]
    folders = [results / n for n in names]
    inside = [f for f in folders if f.is_dir() and ".." not in f.parts]
    paths = [p for f in inside for p in sorted(f.rglob("*.json"))]
    paths = [p for p in paths if not p.name.endswith(".failed.json") and not p.name.startswith(".")]
    if name and not paths:
        known = {p.name for p in results.iterdir() if p.is_dir()}
        raise UnknownName("benchmark or record", name, known, f"in {results}")
    return paths


def audit(
    files: Iterable[Path],
    evaluate: Evaluate,
    weights: Mapping[str, Path],
    *,
    data_hash: DataHash,
    results: Path | None = None,
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
        results: the folder that ids are below; None does not look at places and teachers.
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


def _wrong_record(file: Path, record: RunRecord, results: Path | None) -> str:
    """What of a record contradicts its place or its teachers' records; empty where nothing does."""
    if results is None or not file.resolve().is_relative_to(results.resolve()):
        return ""
    if file.resolve() != record_path(results, record.id).resolve():
        return f"record: {file} says that it is {record.id}; it was moved or edited"
    members = record.config.get("model", {}).get("members", {}) if isinstance(record.config.get("model"), dict) else {}
    taught_by = {m.get("weights"): m.get("sha256") for m in members.values() if isinstance(m, dict)}
    for identity in teacher_ids(record):
        path, expected = record_path(results, identity), taught_by.get(f"run://{identity}")
        if expected and path.is_file():
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
