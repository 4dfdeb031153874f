"""The cache of downloaded students: weight files by their sha256, and for each reference the card that it gave."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import ValidationError

from limbeck.engine.paths import cache_dir
from limbeck.engine.weights import check_sha256, write_json
from limbeck.errors import CorruptFile, OutputError
from limbeck.zoo.card import Card

DAY = 86_400.0  # seconds


@dataclass(frozen=True, slots=True)
class Entry:
    """What a reference gave when it was asked.

    reference: as asked for, with its revision.
    source: the address of the card; of a Hugging Face repository with the commit.
    weights: addresses of the weight file, tried in this order.
    """

    reference: str
    source: str
    weights: tuple[str, ...]
    card: Card

    @property
    def path(self) -> Path:
        """Where the weights lie in the cache, if they are there."""
        return weights_file(self.card.sha256)


@dataclass(frozen=True, slots=True)
class Stored:
    """A line of `limbeck cache list`; `last_used` in seconds since 1970, `size` in bytes, 0 without weights."""

    name: str
    source: str
    sha256: str
    size: int
    last_used: float
    path: str


def folder() -> Path:
    """The folder of the cache; it need not exist yet."""
    return cache_dir() / "students"


def weights_file(sha256: str) -> Path:
    """Where the weight file with this hash lies, or would lie."""
    return folder() / "weights" / f"{sha256}.safetensors"


def part_file(sha256: str) -> Path:
    """Where what has arrived of that file is kept until it is whole: the next attempt goes on from there."""
    return folder() / "parts" / f"{sha256}.part"


@contextlib.contextmanager
def locked(sha256: str) -> Iterator[None]:
    """Hold one weight file of the cache: a second process waits, and then finds the file.

    Raises: OutputError when the cache cannot be written.
    """
    from filelock import FileLock

    path = folder() / "parts" / f"{sha256}.lock"
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(path))
        except OSError as error:
            raise OutputError(
                f"cannot write the cache {folder()}: {error.strerror}; set LIMBECK_CACHE to another folder"
            ) from error
        yield


def _entry_file(reference: str) -> Path:
    return folder() / "cards" / f"{hashlib.sha256(reference.encode()).hexdigest()[:40]}.json"


def remember(entry: Entry) -> None:
    """Keep what a reference gave. Raises: OutputError when the cache cannot be written."""
    write_json(_entry_file(entry.reference), {**asdict(entry), "card": entry.card.model_dump(mode="json")})


def recall(reference: str) -> Entry | None:
    """What a reference gave before; None where the cache has nothing of it. Its use is noted."""
    path = _entry_file(reference)
    entry = _read_entry(path)
    if entry is not None:
        with contextlib.suppress(OSError):  # a read-only cache can be used too
            os.utime(path)
    return entry


def _read_entry(path: Path) -> Entry | None:
    """None for a file that is absent or damaged: it can be fetched again."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        card = Card.model_validate(raw["card"])
        return Entry(raw["reference"], raw["source"], tuple(raw["weights"]), card)
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return None


def _entries() -> Iterator[tuple[Path, Entry]]:
    for path in sorted((folder() / "cards").glob("[!.]*.json")):
        if (entry := _read_entry(path)) is not None:
            yield path, entry


def checked(path: Path, sha256: str) -> Path:
    """A weight file of the cache; one that is not what its name says is removed.

    Raises: CorruptFile with both hashes.
    """
    try:
        check_sha256(path, sha256)
    except CorruptFile as error:
        path.unlink(missing_ok=True)
        raise CorruptFile(f"{str(error).partition(';')[0]}; it was removed from the cache: get it again") from error
    return path


def stored() -> list[Stored]:
    """What is in the cache, by name: a line for each reference that was used."""
    lines = []
    for path, entry in _entries():
        size = entry.path.stat().st_size if entry.path.is_file() else 0
        when = path.stat().st_mtime
        lines.append(Stored(entry.card.name, entry.source, entry.card.sha256, size, when, str(entry.path)))
    return sorted(lines, key=lambda line: (line.name, line.source))


@dataclass(frozen=True, slots=True)
class Removed:
    """A file that `prune` removed, or would remove; `size` in bytes."""

    path: str
    what: str
    size: int


def prune(older_than: float | None = None, *, everything: bool = False, dry_run: bool = False) -> list[Removed]:
    """Remove students from the cache, and always what no student needs: unfinished downloads and nameless weights.

    Files that another process is downloading are left alone. Two students with the same weights share one file, which
    goes with the last of them.

    Args:
        older_than: days; students that were not used for so long go.
        everything: all students go.
        dry_run: only say what would go.
    """
    kept: set[str] = set()
    gone: list[tuple[Path, str]] = []
    limit = None if older_than is None else time.time() - older_than * DAY
    for path, entry in _entries():
        if everything or (limit is not None and path.stat().st_mtime < limit):
            gone.append((path, f"card of {entry.card.name}"))
        else:
            kept.add(entry.card.sha256)
    for path in sorted((folder() / "weights").glob("*.safetensors")):
        if path.stem not in kept:
            gone.append((path, "weights"))
    removed = [_remove(path, what, dry_run) for path, what in gone]
    return removed + _prune_parts(dry_run)


def _remove(path: Path, what: str, dry_run: bool) -> Removed:
    size = path.stat().st_size
    if not dry_run:
        path.unlink(missing_ok=True)
    return Removed(str(path), what, size)


def _prune_parts(dry_run: bool) -> list[Removed]:
    from filelock import FileLock, Timeout

    removed = []
    for path in sorted((folder() / "parts").glob("*.part")):
        try:
            with FileLock(path.with_suffix(".lock"), timeout=0):
                removed.append(_remove(path, "unfinished download", dry_run))
        except Timeout:
            continue  # somebody is downloading it
    return removed
