"""The figures of a table from records one by one, in plain Python: what the columns are held against."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from statistics import fmean
from typing import Any

from limbeck.engine.config import PLAIN, TEACHER
from limbeck.leaderboard.rows import Row, build_row
from limbeck.leaderboard.stats import gained, gap_closed, holm, ranks
from limbeck.leaderboard.store import Group


def rows_of(group: Group) -> list[Row]:
    """All rows of a group's table, in order."""
    sample = group.sample
    primary, higher = sample.primary_metric, sample.higher_is_better
    students = [build_row(seeds, PLAIN if name == PLAIN else "method") for name, seeds in group.students.items()]
    teachers = [build_row(seeds, TEACHER, name) for name, seeds in group.references.items()]
    reference = next((t for t in teachers if t.method == reference_of(group)), None)
    plain = next((r for r in students if r.role == PLAIN), None)
    gains = [
        gained(r.cells[primary].values, plain.cells[primary].values, higher_is_better=higher)
        if plain and r.role != PLAIN
        else None
        for r in students
    ]
    adjusted = holm([None if g is None or r.flags else g.p for r, g in zip(students, gains)])
    ranked = [r for r in students if not r.flags]
    places = ranks([r.cells[primary].estimate for r in ranked], higher_is_better=higher)
    placed = dict(zip((r.method for r in ranked), places))
    done = []
    for row, gain, p in zip(students, gains, adjusted):
        closed = None
        if gain is not None and plain is not None and reference is not None:
            base = fmean(plain.cells[primary].values[s] for s in gain.seeds)
            mean = base + gain.difference.mean if higher else base - gain.difference.mean
            closed = gap_closed(mean, base, reference.cells[primary].estimate.mean, higher_is_better=higher)
        other = plain is not None and row.cost.parameters != plain.cost.parameters
        changes: dict[str, Any] = dict(gain=gain, p=p, gap_closed=closed, rank=placed.get(row.method))
        done.append(replace(row, **changes, other_network=other))
    sign = -1 if higher else 1
    done.sort(key=lambda r: (r.role != PLAIN, sign * r.cells[primary].estimate.mean, r.method))
    return [*teachers, *done]


def reference_of(group: Group) -> str | None:
    """The teachers' row that most runs of methods name."""
    named = Counter(r.teacher_record for seeds in group.students.values() for r in seeds.values())
    votes = {
        name: (max(named[r.id] for r in seeds.values()), name == TEACHER) for name, seeds in group.references.items()
    }
    return max(votes, key=lambda name: votes[name]) if votes else None


def warnings_of(group: Group) -> list[str]:
    """What is missing or flagged among a group's records, without its failures."""
    said = [] if group.teachers else ["no teacher record: the share of the teacher gap closed is unknown"]
    plain = group.students.get(PLAIN, {})
    for seeds in group.students.values():
        name = next(iter(seeds.values())).method
        lone, short = sorted(seeds.keys() - plain.keys()), sorted(plain.keys() - seeds.keys())
        if lone:
            said.append(f"{name}: no plain student on {_seeds(lone)}, left out of the paired gain")
        if short:
            said.append(f"{name}: no record on {_seeds(short)}, which the plain student has")
        for flag in ("unreliable", "partial"):
            marked = sorted(s for s, r in seeds.items() if r.status == flag)
            if marked:
                said.append(f"{name}: {_seeds(marked)} {flag}, shown but not ranked")
    return said + [f"{t.id}: {t.status}" for t in group.teachers if t.status in ("unreliable", "partial")]


def _seeds(seeds: list[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
