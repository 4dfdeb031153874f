"""What the folders of active loops say was chosen, and the images of their pool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.engine.config import RunConfig, parse
from limbeck.engine.evaluate import build_dataset
from limbeck.engine.prepare import unaugmented
from limbeck.engine.record import RunRecord
from limbeck.engine.weights import check_sha256
from limbeck.errors import ConfigError, CorruptFile
from limbeck.leaderboard.pictures.chosen import Round


class Pool:
    """The training images of a group's loops, without augmentation, in the order of their ids.

    Raises: CorruptFile when they are not the record's; DataMissing.
    """

    def __init__(self, record: RunRecord) -> None:
        run = parse(RunConfig, dict(record.config), f"the config of {record.id}")
        self._data: Any = build_dataset(unaugmented(run.data), "train")
        self.classes: list[str] = list(self._data.classes)
        if record.data.train_hash not in (None, self._data.content_hash):
            raise CorruptFile(
                f"the training split of {record.data.name} found here has hash {self._data.content_hash[:12]}…, that "
                f"of {record.id} has {record.data.train_hash[:12]}…; get the data that the record was made with"
            )

    def __len__(self) -> int:
        return len(self._data)

    def images(self, ids: list[int]) -> Any:
        """Files where the data set has some, else pixels (n, C, H, W) uint8."""
        paths = self._data.paths
        return [paths[i] for i in ids] if paths is not None else self._data.batch(np.asarray(ids))[0]

    def rounds(self, record: RunRecord, weights: Path, rounds: int, count: int) -> list[Round]:
        """The first choices of a run.

        Args:
            weights: the run's file, in whose folder the rounds lie. rounds, count: how many rounds, and images of each.
        Raises: CorruptFile when the file is not the record's, or a choice is not whole; ConfigError without one.
        """
        check_sha256(weights, record.student_sha256)
        found = []
        for number in range(1, min(rounds, int(record.config["loop"]["rounds"])) + 1):
            place = weights.parent / "rounds" / str(number)
            ids, known = _read(place / "asked.json")["ids"], _read(place / "labels.json")
            labels = dict(zip(known["ids"], known["labels"]))
            wrong = [i for i in ids if i not in labels or not 0 <= i < len(self)]
            if wrong or not ids:
                raise CorruptFile(f"{place}: image {wrong[:1]} was chosen and has no label; run {record.id} again")
            found.append(
                Round(
                    number=number,
                    ids=ids,
                    classes=[labels[i] for i in ids],
                    shown=min(count, len(ids)),
                    before=len(labels) - len(ids),
                )
            )
        return found


def _read(path: Path) -> Any:
    if not path.is_file():
        raise ConfigError(f"{path}: is missing; name the folder in which the loop ran with --runs, or run it again")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptFile(f"{path}: not whole; delete the run's folder and run it again") from error
