"""The commands that make a record's run again, from the shipped config that has its benchmark and pair."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from limbeck.engine.record import RunRecord
from limbeck.engine.shipped import pair_configs
from limbeck.leaderboard.checks import teacher_ids

OUT = "out/again"


def commands_of(record: RunRecord, known: Mapping[str, RunRecord]) -> list[str]:
    """What to type, teachers first; nothing where no shipped config has the pair.

    Args:
        known: records by id, for the teachers.
    """
    made: dict[str, None] = {}
    _add(record, known, made, set())
    return list(made)


def _add(record: RunRecord, known: Mapping[str, RunRecord], made: dict[str, None], seen: set[str]) -> None:
    configs = pair_configs().get((record.benchmark, record.pair))
    if configs is None or record.id in seen:
        return
    seen.add(record.id)
    for identity in teacher_ids(record):
        if identity in known:
            _add(known[identity], known, made, seen)
    made[f"limbeck train {configs[0]} --method {shlex.quote(record.method)} --seed {record.seed} --out {OUT}"] = None
