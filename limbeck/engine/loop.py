"""Loops beyond epochs: runs that are made of several runs, such as rounds of active learning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limbeck.engine.config import RunConfig
    from limbeck.engine.record import RunRecord
    from limbeck.engine.run import RunOptions


class Loop(ABC):
    """A run that `limbeck.engine.run.execute` hands over; registered by name in LOOPS, built from a config's `loop`."""

    @abstractmethod
    def run(self, config: RunConfig, options: RunOptions, folder: Path) -> RunRecord:
        """Make the runs that the loop is made of, those that are missing, and the record of them all.

        Args:
            config: with `loop`; the inner runs are `config` without it, and with whatever the loop changes.
            options: of the whole; inner runs get `out` and `records` below `folder`.
            folder: of this run, held for it alone; the student that the record is of ends up in it.
        """
