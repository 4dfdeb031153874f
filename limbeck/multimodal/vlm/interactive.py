"""Active learning with a person: the images to label as a sheet, the labels back from it, and a student a round."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from limbeck.engine.config import RunConfig, parse
from limbeck.engine.output import exclusive
from limbeck.engine.record import RunRecord
from limbeck.engine.registry import LOOPS
from limbeck.engine.run import RunOptions
from limbeck.engine.selection import Pool
from limbeck.engine.weights import write_json
from limbeck.errors import ConfigError
from limbeck.multimodal.vlm.data.partly_labelled import PartlyLabelled
from limbeck.multimodal.vlm.loops import ActiveLearning
from limbeck.multimodal.vlm.oracle import LabelFile
from limbeck.multimodal.vlm.sheet import Sheet, write_sheet
from limbeck.multimodal.vlm.strategies.random import Random

STATE = "active.json"


@dataclass(frozen=True)
class Step:
    """What `Session.next` did.

    number: the round whose labels are wanted. sheet: where they are to be written; None where the loop is at its end.
    record: of the student that was trained; None in round 0. waiting: the sheet was there already, without labels.
    """

    number: int
    sheet: Sheet | None
    record: RunRecord | None = None
    waiting: bool = False


class Session:
    """A loop whose labels come from a person, in a folder of its own.

    Round 0's images are drawn at random, for there is no student to ask (ASSUMPTION: the paper starts with one image
    of each class, which somebody would have to find first).

    Args:
        folder: of the session; holds its config.
        config: a run with `loop` and a PartlyLabelled training set that labels nothing.
    """

    def __init__(self, folder: Path, config: RunConfig, options: RunOptions) -> None:
        if not config.loop:
            raise ConfigError(f"{config.id} has no loop; name a config of active learning")
        self.folder, self.config = folder, config
        self.loop = cast(ActiveLearning, LOOPS.make(config.loop))
        self.rounds = self.loop.rounds_of(config, options, folder)
        train = {k: v for k, v in config.data.train.items() if k not in ("type", "shots", "shots_seed")}
        # Any label will do to look at the images; none of these is read.
        self.images = PartlyLabelled(**{"split": "train", **train, "labelled": [0], "labels": [0]})

    @classmethod
    def open(cls, folder: Path, options: RunOptions, config: RunConfig | None = None) -> Session:
        """Go on with a folder's session, or begin one there.

        Raises: ConfigError where neither the folder nor the caller has a config, or the two differ.
        """
        path = folder / STATE
        kept = parse(RunConfig, json.loads(path.read_text(encoding="utf-8")), str(path)) if path.is_file() else None
        if kept is None and config is None:
            raise ConfigError(f"{folder} holds no session; begin one with: limbeck active next CONFIG --out {folder}")
        if kept is not None and config is not None and kept != config:
            raise ConfigError(
                f"{folder} holds a session of another config; go on without CONFIG, or name another --out"
            )
        session = cls(folder, cast(RunConfig, config or kept), options)
        if kept is None:
            write_json(path, session.config.model_dump(mode="json"))
        return session

    @property
    def budget(self) -> int:
        """Images a round."""
        return min(self.loop.budget or len(self.images.classes), len(self.images))

    def next(self) -> Step:
        """Train on the labels so far, choose the next images, and write their sheet; or say what is waited for."""
        with exclusive(self.folder):
            number = self._current()
            if self.rounds.labels(number) is None:
                there = self._sheet_of(number)
                if there is not None:
                    return Step(number, there, waiting=True)
                if number == 0:
                    return Step(0, self._ask_first())
                number -= 1  # it was interrupted before the sheet was whole
            record = self.rounds.train(number, self.loop.rounds + 1)
            if number == self.loop.rounds:
                return Step(number, None, record)
            ids = self.rounds.asked(number + 1)
            if ids is None:
                ids = self.rounds.choose(number + 1, self.loop.strategy, self.budget, len(self.images.classes))
            return Step(number + 1, self._write(number + 1, ids, self.rounds.probabilities(number, ids)), record)

    def submit(self, labels: Path | None = None) -> tuple[int, int]:
        """Read the labels of the images that were asked for; the sheet's own file where none is named.

        Returns: the round, and how many labels it has now.
        Raises: ConfigError where nothing was asked for; what `LabelFile` raises.
        """
        with exclusive(self.folder):
            number = self._current()
            ids = self.rounds.asked(number)
            if ids is None or self.rounds.labels(number) is not None:
                raise ConfigError(
                    f"{self.folder}: no labels are asked for; run: limbeck active next --out {self.folder}"
                )
            path = labels or self.rounds.place(number) / "labels.csv"
            found = LabelFile(path, self.images.classes, names=self._names()).reveal(ids)
            self.rounds.label(number, ids, found)
            return number, len(cast(Any, self.rounds.labels(number))[0])

    def _current(self) -> int:
        """The last round that has been asked for."""
        return max((n for n in range(self.loop.rounds + 1) if self.rounds.asked(n) is not None), default=0)

    def _ask_first(self) -> Sheet:
        ids = self.rounds.asked(0)
        if ids is None:
            none = np.zeros(0, np.int64)
            pool = Pool(labelled=none, labels=none, unlabelled=np.arange(len(self.images)))
            ids = Random().choose(pool, self.budget, seed=(self.config.seed, 0))
            self.rounds.ask(0, ids, strategy="Random")
        return self._write(0, ids, None)

    def _write(self, number: int, ids: np.ndarray, guesses: np.ndarray | None) -> Sheet:
        names = self._names()
        paths = self.images.paths
        pictures: Any = [paths[i] for i in ids] if paths is not None else self.images.batch(ids)[0]
        chosen = None if names is None else [names[i] for i in ids]
        return write_sheet(self.rounds.place(number), ids, pictures, self.images.classes, guesses, chosen)

    def _sheet_of(self, number: int) -> Sheet | None:
        place = self.rounds.place(number)
        there = (place / "labels.csv").is_file() and (place / "sheet.html").is_file()
        return Sheet(place / "labels.csv", place / "sheet.html", []) if there else None

    def _names(self) -> list[str] | None:
        paths = self.images.paths
        return None if paths is None else [str(path) for path in self.images.files or []]
