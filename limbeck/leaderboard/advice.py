"""Advice: which method helped where, by stated rules, from tables; nothing is guessed where a test tells nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from limbeck.engine.config import PLAIN, TEACHER
from limbeck.leaderboard.rows import Row
from limbeck.leaderboard.stats import ALPHA, gained, holm
from limbeck.leaderboard.table import Table


@dataclass(frozen=True)
class PairAdvice:
    """What a pair's table says to somebody who chooses.

    tested: methods with a test against the plain student.
    best: of those that helped, the one with the largest mean gain; None where none did.
    alike: the others that helped and that no test tells apart from the best.
    cheapest: of the best and these, the one with the least training time.
    """

    table: Table
    tested: int
    best: Row | None
    alike: tuple[Row, ...] = ()
    cheapest: Row | None = None


@dataclass(frozen=True)
class MethodAdvice:
    """One method over the pairs of a task: in how many it was tested, helped and hurt; median share of the gap."""

    method: str
    pairs: int
    helped: int
    hurt: int
    closed: float | None


def helped(row: Row) -> bool:
    """Whether a method is told apart from the plain student as better: mean gain > 0 and adjusted p < 0.05."""
    return _told_apart(row) and row.gain is not None and row.gain.difference.mean > 0


def hurt(row: Row) -> bool:
    """The same as worse."""
    return _told_apart(row) and row.gain is not None and row.gain.difference.mean < 0


def _told_apart(row: Row) -> bool:
    return row.p is not None and row.p < ALPHA


def advise_pair(table: Table) -> PairAdvice:
    """Best and cheapest method of one table.

    Best and others are compared by the two-sided paired t-test on shared seeds, Holm-adjusted over those that helped;
    without shared seeds nothing tells two apart.
    """
    tested = [r for r in table.rows if r.p is not None]
    good = [r for r in tested if helped(r)]
    if not good:
        return PairAdvice(table, len(tested), None)
    best = max(good, key=_gain)
    others = [r for r in good if r is not best]
    values = best.cells[table.primary].values
    found = [gained(values, r.cells[table.primary].values, higher_is_better=table.higher_is_better) for r in others]
    ps = holm([None if one is None else one.p for one in found])
    alike = tuple(r for r, p in zip(others, ps, strict=True) if p is None or p >= ALPHA)
    return PairAdvice(table, len(tested), best, alike, min([best, *alike], key=lambda r: r.cost.train_seconds))


def advise_methods(tables: Sequence[Table]) -> list[MethodAdvice]:
    """Every tested method over some tables; those that helped in the largest share of their pairs first."""
    rows: dict[str, list[Row]] = {}
    for table in tables:
        for row in table.rows:
            if row.role not in (PLAIN, TEACHER) and row.p is not None:
                rows.setdefault(row.method.lower(), []).append(row)
    made = [_over(found) for found in rows.values()]
    return sorted(made, key=lambda m: (-m.helped / m.pairs, m.hurt / m.pairs, -m.pairs, m.method.lower()))


def _over(rows: Sequence[Row]) -> MethodAdvice:
    closed = [r.gap_closed for r in rows if r.gap_closed is not None]
    return MethodAdvice(
        rows[0].method, len(rows), sum(map(helped, rows)), sum(map(hurt, rows)), median(closed) if closed else None
    )


def never_helped(methods: Iterable[MethodAdvice]) -> list[MethodAdvice]:
    """Those that were told apart as better in no pair."""
    return [m for m in methods if not m.helped]


def _gain(row: Row) -> float:
    assert row.gain is not None
    return row.gain.difference.mean
