"""Records of a folder that are read when they are asked for, each once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from limbeck.engine.record import RunRecord, record_path
from limbeck.leaderboard.index import read_fast


class Shelf:
    """The records of a checked folder by id."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._read: dict[str, RunRecord] = {}

    def __getitem__(self, identity: str) -> RunRecord:
        """Read a record.

        Raises: CorruptFile, also where the file is gone by now.
        """
        if identity not in self._read:
            self._read[identity] = read_fast(record_path(self.root, identity))
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
