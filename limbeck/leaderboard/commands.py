"""The commands that make a record's run again, from the shipped config that has its benchmark and pair."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from limbeck.engine.config import shipped_configs
from limbeck.engine.record import RunRecord
from limbeck.leaderboard.checks import teacher_ids

OUT = "out/again"
_KEY = r'^{} = "(.+)"'
_BASE = re.compile(r'^_base_ = \[?"(.+?)"', re.MULTILINE)


@cache
def config_names() -> Mapping[tuple[str, str], str]:
    """Names of the shipped configs by benchmark and pair, as their text says; configs are not run for it."""
    found: dict[tuple[str, str], str] = {}
    for name, path in shipped_configs().items():
        benchmark, pair = _said(path, "benchmark"), _said(path, "pair")
        if benchmark is not None and pair is not None:
            found.setdefault((benchmark, pair), name)
    return found


def _said(path: Path, key: str) -> str | None:
    """What a config, or the one that it is based on, sets a key to; None where it computes it."""
    text = path.read_text(encoding="utf-8")
    match = re.search(_KEY.format(key), text, re.MULTILINE)
    if match is not None:
        return match[1]
    base = _BASE.search(text)
    beside = None if base is None else path.parent / base[1]
    return _said(beside, key) if beside is not None and beside.is_file() else None


def commands_of(record: RunRecord, known: Mapping[str, RunRecord]) -> list[str]:
    """What to type, teachers first; nothing where no shipped config has the pair.

    Args:
        known: records by id, for the teachers.
    """
    made: dict[str, None] = {}
    _add(record, known, made, set())
    return list(made)


def _add(record: RunRecord, known: Mapping[str, RunRecord], made: dict[str, None], seen: set[str]) -> None:
    config = config_names().get((record.benchmark, record.pair))
    if config is None or record.id in seen:
        return
    seen.add(record.id)
    for identity in teacher_ids(record):
        if identity in known:
            _add(known[identity], known, made, seen)
    made[f"limbeck train {config} --method {shlex.quote(record.method)} --seed {record.seed} --out {OUT}"] = None
