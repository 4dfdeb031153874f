"""The index of a folder of records: one row a file, kept as Parquet in the cache folder, so that a file is parsed once.

A file is read again when its size, modification or change time differ from what the index has; one that was written
within two seconds before the index was made is never kept, for a second write in that time could look the same.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from limbeck.engine.paths import cache_dir
from limbeck.engine.record import RunRecord, read_record
from limbeck.engine.weights import atomic_path, sha256_plain
from limbeck.errors import OutputError, UserError
from limbeck.leaderboard.index_row import COLUMNS, row_of

if TYPE_CHECKING:
    import polars as pl

VERSION = 2  # of the columns; the schema of records is part of the file's name as well
KEPT_FROM = 256  # files: fewer are read as fast as an index
PROCESSES_FROM = 2000  # files: fewer are parsed before a second process has started
CHUNK = 400
_RACY = 2_000_000_000  # nanoseconds
_STAT = {"path": str, "size": int, "mtime_ns": int, "ctime_ns": int}

Report = Callable[[int, int], None]  # files parsed, of how many


@dataclass(frozen=True)
class Listed:
    """What lies in a folder: records with their size and times, by path; and failure records."""

    records: list[tuple[str, int, int, int]]
    failures: list[Path]


def list_files(root: Path) -> Listed:
    """Every record file below a folder in the order of their paths, folder by folder; hidden files are left out."""
    records: list[tuple[str, int, int, int]] = []
    failures: list[Path] = []
    folders = [""]
    while folders:
        folder = folders.pop()
        for entry in _entries(root / folder):
            path = f"{folder}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                folders.append(f"{path}/")
            if not entry.name.endswith(".json") or entry.name.startswith("."):
                continue
            if entry.name.endswith(".failed.json"):
                failures.append(root / path)
            else:
                records.append((path, *_stat(entry)))
    records.sort(key=lambda one: one[0].replace("/", "\0"))
    return Listed(records, sorted(failures))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except PermissionError:
        return []


def _stat(entry: os.DirEntry[str]) -> tuple[int, int, int]:
    try:
        found = entry.stat()
    except OSError:  # a dangling link: reading it says what is wrong
        return -1, -1, -1
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def read_index(root: Path, listed: Listed, report: Report | None = None) -> pl.DataFrame:
    """The columns `limbeck.leaderboard.index_row.COLUMNS` of every record of a folder, in the order of `listed`.

    Every record is validated by its pydantic model when it is first read, in several processes where there are many.

    Raises: CorruptFile at the first damaged record; the others are in the index nevertheless.
    """
    import polars as pl

    started = time.time_ns()
    now = pl.DataFrame(listed.records, schema=_STAT, orient="row")
    place = index_path(root) if len(now) >= KEPT_FROM else None
    kept = _load(place)
    if kept is not None and kept.select(*_STAT).equals(now):
        return kept
    fresh = now if kept is None else now.join(kept, on=list(_STAT), how="anti", maintain_order="left")
    rows, errors = _parse(root, fresh["path"].to_list(), report)
    made = pl.DataFrame(rows, schema={"path": str, **COLUMNS}, orient="row")
    whole = fresh.join(made, on="path")
    if kept is not None:
        whole = pl.concat([kept.join(now, on=list(_STAT), how="semi"), whole])
    order = now.select("path").with_row_index("order")
    whole = whole.join(order, on="path").sort("order").drop("order")
    _save(place, whole.filter(pl.max_horizontal("mtime_ns", "ctime_ns") < started - _RACY))
    if errors:
        raise errors[0]
    return whole


def index_path(root: Path) -> Path:
    """Where the index of a folder is kept: one file a folder, schema of records and version."""
    from limbeck import __version__

    schema = json.dumps(RunRecord.model_json_schema(), sort_keys=True)
    text = "\0".join([str(root.resolve()), schema, __version__, str(VERSION)])
    return cache_dir() / "leaderboard" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.parquet"


def _load(place: Path | None) -> pl.DataFrame | None:
    import polars as pl

    if place is None or not place.is_file():
        return None
    try:
        found = pl.read_parquet(place)
    except (OSError, pl.exceptions.PolarsError):  # torn, or of another polars: made again
        return None
    return found if found.schema == pl.Schema({**_STAT, **COLUMNS}) else None


def _save(place: Path | None, whole: pl.DataFrame) -> None:
    """Keep the index; without a cache folder that can be written, every call reads all records."""
    import polars as pl

    if place is None or whole.is_empty():
        return
    try:
        with atomic_path(place) as temporary:
            whole.write_parquet(temporary, compression="zstd")
    except (OutputError, OSError, pl.exceptions.PolarsError):
        return


def _parse(root: Path, paths: Sequence[str], report: Report | None) -> tuple[list[tuple[Any, ...]], list[UserError]]:
    rows: list[tuple[Any, ...]] = []
    errors: list[UserError] = []
    done = 0
    for read in _chunks(root, paths):
        done += len(read)
        rows += [one for one in read if isinstance(one, tuple)]
        errors += [one for one in read if isinstance(one, UserError)]
        if report is not None:
            report(done, len(paths))
    return rows, errors


def _chunks(root: Path, paths: Sequence[str]) -> Iterator[list[tuple[Any, ...] | UserError]]:
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    if len(paths) < PROCESSES_FROM:
        yield from (_read_chunk(root, chunk) for chunk in chunks)
        return
    from joblib import Parallel, delayed  # its processes do not import the caller's script again

    found: Any = Parallel(n_jobs=-1, return_as="generator")(delayed(_read_chunk)(root, chunk) for chunk in chunks)
    yield from found


@contextmanager
def uncollected() -> Iterator[None]:
    """For a chunk of records: no search for cycles, which would go through their many values and find none."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


@uncollected()
def _read_chunk(root: Path, paths: Sequence[str]) -> list[tuple[Any, ...] | UserError]:
    found: list[tuple[Any, ...] | UserError] = []
    for path in paths:
        try:
            found.append((path, *row_of(read_fast(root / path))))
        except UserError as error:
            found.append(error)
    return found


def read_fast(path: Path) -> RunRecord:
    """The same record or error as `read_record`, by one pass over the bytes where nothing is wrong.

    Raises: CorruptFile.
    """
    try:
        content = path.read_bytes()
        record = RunRecord.model_validate_json(content)
    except (OSError, ValidationError):
        return read_record(path)
    if not content.isascii() or b"\\u" in content or b"\x7f" in content:  # may hold a control character
        return read_record(path)
    if sha256_plain(record.config) != record.config_hash:
        return read_record(path)
    return record
