"""Places of records: one folder, or several whose records are taken together as if they lay in one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from limbeck.engine.record import record_path
from limbeck.errors import ConfigError

Places = str | Path | Sequence[str | Path]


def folders_of(places: Places) -> tuple[Path, ...]:
    """The folders that are named, each once.

    Raises: ConfigError when none is.
    """
    named = [places] if isinstance(places, str | Path) else places
    found = {Path(place).resolve(): Path(place) for place in reversed(named)}  # the first spelling is kept
    if not found:
        raise ConfigError("no folder of records is named; name one with --results")
    return tuple(reversed(found.values()))


def spelled(folders: Sequence[Path]) -> str:
    """The folders in a sentence."""
    return " and ".join(map(str, folders))


def find_record(folders: Sequence[Path], identity: str) -> Path | None:
    """The file of a record in the first folder that has it; None where none has, or where an id leads out of them."""
    paths = (record_path(folder, identity) for folder in folders)
    return next((p for p, folder in zip(paths, folders) if p.is_file() and p.is_relative_to(folder)), None)
