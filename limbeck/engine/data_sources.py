"""Data sets of all task packages: which there are, where each was found, and how to get it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from limbeck.engine.registry import package_modules
from limbeck.errors import DataMissing, UnknownName


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    Args:
        text: one line about it: what it is, how large, its licence.
        find: gives its folder, or raises DataMissing; None for a data set without files of its own.
        fetch: downloads it, with or without progress, and gives its folder; None where that cannot be done from here.
        why: it cannot be downloaded.
        place: what a data set without files of its own is made from, such as 'inside scikit-learn'.
    Raises: ValueError unless exactly one of find and place is given.
    """

    text: str
    find: Callable[[], Path] | None = None
    fetch: Callable[[bool], Path] | None = None
    why: str = "no public home has this very copy"
    place: str = ""

    def __post_init__(self) -> None:
        if (self.find is None) == (not self.place):
            raise ValueError(f"a source has either find or place: {self.text}")


def sources() -> dict[str, Source]:
    """Name of a data set → where it comes from: what `sources()` of every `limbeck.<package>.data.get` says.

    Of a name that two packages have, the first one's source counts.
    """
    found: dict[str, Source] = {}
    for module in package_modules("data.get"):
        for dataset, source in module.sources().items():
            found.setdefault(dataset, source)
    return found


def available() -> dict[str, str]:
    """Data sets that `get` knows: name → one line about each."""
    return {name: source.text for name, source in sources().items()}


def located() -> dict[str, str]:
    """Data set → where its files are on this machine, or what it is made from; empty where it is not here."""
    return {name: _place(source) for name, source in sources().items()}


def _place(source: Source) -> str:
    if source.find is None:
        return source.place
    try:
        return str(source.find())
    except DataMissing:
        return ""


def get(name: str, progress: bool = True) -> Path | None:
    """Download a data set from its public home and return its folder; nothing is done where the cache has it already.

    A data set without such a home is only looked for.

    Returns: None for a data set without files of its own, for which there is nothing to do.
    Raises: UnknownName; DataMissing when it cannot be downloaded, saying where to put it; CorruptFile when something
        else arrives; OutputError.
    """
    known = sources()
    if name not in known:
        raise UnknownName("data set", name, known)
    source = known[name]
    if source.find is None:
        return None
    if source.fetch is not None:
        return source.fetch(progress)
    try:
        return source.find()
    except DataMissing as error:
        raise DataMissing(f"{error}; it cannot be downloaded: {source.why}") from error
