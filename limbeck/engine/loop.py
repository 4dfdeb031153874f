"""Loops beyond epochs: runs that are made of several runs, such as rounds of active learning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.engine.record import config_hash, read_record, record_path

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


def options_of_round(options: RunOptions, place: Path, number: int, rounds: int) -> RunOptions:
    """Options of one of a loop's runs, of which only the last measures a latency and saves its predictions.

    Args:
        place: folder of the round, which gets runs/ and records/.
        number: of the round, from 0 on. rounds: how many there will be, for the progress.
    """
    tell = options.progress

    def progress(stage: str, done: int, total: int) -> None:
        if tell is not None:
            tell(f"round {number + 1}: {stage}", number * total + done, rounds * total)

    return replace(
        options,
        out=place / "runs",
        records=place / "records",
        teachers=options.teachers or options.out,
        latency_ms=options.latency_ms if number == rounds - 1 else 0.0,
        predictions=options.predictions and number == rounds - 1,
        drop_other=True,
        progress=progress,
    )


def finished(run: RunConfig, place: Path) -> RunRecord | None:
    """The record of one of a loop's runs that is done, with this very config; None where it has to be made.

    Args:
        place: folder of the round, as `options_of_round` divides it.
    """
    from limbeck.engine.run import STUDENT_FILE

    path = record_path(place / "records", run.id)
    if not path.is_file() or not (place / "runs" / run.id / STUDENT_FILE).is_file():
        return None
    found = read_record(path)
    return found if found.config_hash == config_hash(run.model_dump(mode="json")) else None


def record_of_rounds(config: RunConfig, records: list[RunRecord], **changes: Any) -> RunRecord:
    """The record of a loop: the last round's, with the loop's whole config and the cost of all rounds.

    Args:
        changes: further fields.
    """
    last = records[-1]
    total: dict[str, Any] = {
        field: sum(getattr(record.cost, field) for record in records)
        for field in ("train_seconds", "samples_seen", "teacher_forwards")
    }
    total["peak_memory_mb"] = max(record.cost.peak_memory_mb for record in records)
    identity = config.model_dump(mode="json")
    facts = dict(config=identity, config_hash=config_hash(identity), cost=last.cost.model_copy(update=total))
    return last.model_copy(update={**facts, **changes})
