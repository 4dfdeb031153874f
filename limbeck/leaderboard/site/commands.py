"""The commands that make a record's run again: as a cell of its table, or from the shipped config that has its pair."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import NamedTuple

from limbeck.engine.shipped import pair_configs, reproduce_command

OUT = "out/again"


class Run(NamedTuple):
    """What commands say of a run.

    teachers: ids of the records whose weights it learnt from.
    """

    benchmark: str
    pair: str
    method: str
    seed: int
    teachers: tuple[str, ...] = ()


def commands_of(run: Run, known: Mapping[str, Run]) -> list[str]:
    """What to type: the cell of the table, with a comparison, else its trainings, teachers first.

    Nothing where no shipped config has the pair.

    Args:
        known: runs by record id, for the teachers.
    """
    cell = reproduce_command(run.benchmark, run.pair, run.method, run.seed)
    made: dict[str, None] = {}
    _add(run, known, made, set())
    return [] if cell is None else [cell, "# or by hand:", *made]


def _add(run: Run, known: Mapping[str, Run], made: dict[str, None], seen: set[Run]) -> None:
    configs = pair_configs().get((run.benchmark, run.pair))
    if configs is None or run in seen:
        return
    seen.add(run)
    for identity in run.teachers:
        if identity in known:
            _add(known[identity], known, made, seen)
    made[f"limbeck train {configs[0]} --method {shlex.quote(run.method)} --seed {run.seed} --out {OUT}"] = None
