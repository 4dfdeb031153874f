"""The pages of records, each with the record's file beside it: in several processes where there are many."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from limbeck.engine.record import RunRecord, read_record
from limbeck.leaderboard.index import CHUNK, PROCESSES_FROM, uncollected
from limbeck.leaderboard.site.commands import Run
from limbeck.leaderboard.site.record import record_view
from limbeck.leaderboard.site.renderer import Pages

if TYPE_CHECKING:
    import polars as pl


def write_records(pages: Pages, shown: pl.DataFrame) -> Generator[str, None, None]:
    """Write a page a record, and its file; gives the ids of those that are done.

    Nothing but text of the records goes to other processes, which write what they made. They start at once, not when
    the first id is asked for.

    Args:
        shown: the records' rows of the index, by id, each with its folder.
    Raises: CorruptFile for a file that was changed since the index was made.
    """
    chunks = _chunks(shown)
    if len(shown) < PROCESSES_FROM:
        return (identity for chunk, known in chunks for identity in write_chunk(pages, chunk, known))
    from joblib import Parallel, delayed  # its processes do not import the caller's script again

    found: Any = Parallel(n_jobs=-1, return_as="generator")(
        delayed(write_chunk)(pages, chunk, known) for chunk, known in chunks
    )
    return _flat(found)


def _flat(found: Any) -> Generator[str, None, None]:
    try:
        for chunk in found:
            yield from chunk
    finally:
        found.close()


def _chunks(shown: pl.DataFrame) -> Iterator[tuple[dict[str, str], dict[str, Run]]]:
    """Records, id → folder, whose pages are written together, and the runs that these pages link to."""
    columns = shown.select("id", "benchmark", "pair", "method", "seed", "teachers")
    known = {
        identity: Run(benchmark, pair, method, seed, tuple(teachers))
        for identity, benchmark, pair, method, seed, teachers in columns.iter_rows()
    }
    plain = dict(shown.select("id", "plain_record").iter_rows())
    folders = list(shown.select("id", "folder").iter_rows())
    for start in range(0, len(folders), CHUNK):
        chunk = dict(folders[start : start + CHUNK])
        yield chunk, _linked([*chunk, *(plain[identity] for identity in chunk)], known)


def _linked(ids: Iterable[str | None], known: Mapping[str, Run]) -> dict[str, Run]:
    """Some runs with their teachers and the teachers of these."""
    found: dict[str, Run] = {}
    waiting = list(ids)
    while waiting:
        identity = waiting.pop()
        if identity is not None and identity in known and identity not in found:
            found[identity] = known[identity]
            waiting += known[identity].teachers
    return found


@uncollected()
def write_chunk(pages: Pages, chunk: Mapping[str, str], known: Mapping[str, Run]) -> list[str]:
    """Write the pages of some records, id → folder, and their files; returns the ids."""
    made = f"{pages.made}/records"
    folders: set[str] = set()
    for identity, folder in chunk.items():
        path = f"{folder}/{identity}.json"
        record, content = _read(path)
        place = f"{made}/{identity}.json"
        parent = os.path.dirname(place)
        if parent not in folders:
            os.makedirs(parent, exist_ok=True)
            folders.add(parent)
        with open(place, "wb") as copy:
            copy.write(content)
        view = record_view(record, known, pages.addresses)
        pages.write(pages.addresses.record(identity), "record", file=f"records/{identity}.html", view=view)
    return list(chunk)


def _read(path: str) -> tuple[RunRecord, bytes]:
    """A record that the index has found valid, and its file's bytes."""
    try:
        with open(path, "rb") as file:
            content = file.read()
        return RunRecord.model_validate_json(content), content
    except (OSError, ValidationError):  # gone or changed by now: says what is wrong
        return read_record(path), Path(path).read_bytes()
