"""Records of folders that are read when they are asked for, each once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from limbeck.engine.record import RunRecord, record_path
from limbeck.leaderboard.index import read_fast
from limbeck.leaderboard.places import find_record


class Shelf:
    """The records of checked folders by id."""

    def __init__(self, *folders: Path) -> None:
        self.folders = folders
        self._read: dict[str, RunRecord] = {}

    def __getitem__(self, identity: str) -> RunRecord:
        """Read a record.

        Raises: CorruptFile, also where the file is gone by now.
        """
        if identity not in self._read:
            path = find_record(self.folders, identity) or record_path(self.folders[0], identity)
            self._read[identity] = read_fast(path)
        return self._read[identity]


class Seeds(Mapping[int, RunRecord]):
    """The records of one method by seed; seeds and ids are known without reading any."""

    def __init__(self, ids: Mapping[int, str], shelf: Shelf) -> None:
        self.ids, self._shelf = dict(ids), shelf

    def __getitem__(self, seed: int) -> RunRecord:
        return self._shelf[self.ids[seed]]

    def __iter__(self) -> Iterator[int]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Seeds({self.ids})"
