"""Pareto fronts: which rows no other row beats in both accuracy and cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from limbeck.errors import ConfigError, UnknownName
from limbeck.leaderboard.stats import Estimate
from limbeck.leaderboard.table import Table
from limbeck.leaderboard.tasks import check_one_kind

CostName = Literal["latency", "flops", "params"]
COST_FIELDS: dict[str, str] = {"latency": "student_latency_ms", "flops": "flops", "params": "parameters"}


@dataclass(frozen=True)
class ParetoPoint:
    """One row of a table as a point.

    pair: of the table; a teacher of several pairs is one point, with the first of them.
    role: 'teacher', 'plain' or 'method'.
    value: the primary metric.
    on_front: whether no other point is at least as good in both and better in one; by means, not by intervals.
    flags: such a point is shown, but is on no front and beats nobody.
    """

    pair: str
    method: str
    role: str
    network: str
    value: Estimate
    cost: float
    on_front: bool
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pareto:
    """The points of some tables by rising cost, best first where it is equal.

    without: the rows whose cost was not measured.
    machines: on how many kinds of machine the runs were made; above one, latencies are no fair comparison.
    """

    tables: tuple[str, ...]
    metric: str
    higher_is_better: bool
    cost: CostName
    points: tuple[ParetoPoint, ...]
    without: tuple[str, ...] = ()
    machines: int = 1

    @property
    def front(self) -> tuple[ParetoPoint, ...]:
        """The points on the front."""
        return tuple(p for p in self.points if p.on_front)


def pareto(tables: Sequence[Table], cost: CostName = "latency") -> Pareto:
    """The front of the primary metric against a cost, over the rows of tables on the same data.

    Equal points are on the front together.

    Raises: UnknownName for a cost; ConfigError for no table, or several kinds of primary metric or test data.
    """
    if cost not in COST_FIELDS:
        raise UnknownName("cost", cost, get_args(CostName))
    if not tables:
        raise ConfigError("no table to draw a front of; name a benchmark that has records")
    check_one_kind(tables)
    data = {t.data["content_hash"]: t.name for t in tables}
    if len(data) > 1:
        raise ConfigError(f"{' and '.join(data.values())} are measured on different data; take one benchmark at a time")
    points, without = _points(tables, cost)
    sign = 1 if tables[0].higher_is_better else -1
    points.sort(key=lambda p: (p.cost, -sign * p.value.mean, p.pair, p.method))
    front = on_front([(p.cost, sign * p.value.mean) for p in points if not p.flags])
    marked = iter(front)
    done = tuple(p if p.flags else replace(p, on_front=next(marked)) for p in points)
    machines = {(e["device"], e["cpu"]) for t in tables for e in t.environments}
    return Pareto(
        tuple(t.name for t in tables),
        tables[0].primary,
        tables[0].higher_is_better,
        cost,
        done,
        tuple(without),
        len(machines),
    )


def on_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Of points (cost, goodness) which ones no other beats: cost at most and goodness at least as much, one of them
    strictly.
    """
    best: dict[float, float] = {}
    for cost, good in points:
        best[cost] = max(good, best.get(cost, good))
    winners: set[tuple[float, float]] = set()
    reached = float("-inf")
    for cost in sorted(best):
        if best[cost] > reached:
            reached = best[cost]
            winners.add((cost, reached))
    return [point in winners for point in points]


def _points(tables: Sequence[Table], cost: CostName) -> tuple[list[ParetoPoint], list[str]]:
    points: list[ParetoPoint] = []
    without: list[str] = []
    seen: set[tuple[str, ...]] = set()
    for table in tables:
        for row in table.rows:
            records = tuple(sorted(row.records.values()))
            if records in seen:
                continue
            seen.add(records)
            spent = getattr(row.cost, COST_FIELDS[cost])
            if spent is None:
                without.append(f"{row.method} of {table.pair}")
                continue
            value = row.cells[table.primary].estimate
            points.append(
                ParetoPoint(table.pair, row.method, row.role, row.network, value, float(spent), False, row.flags)
            )
    return points, without


def pareto_json(found: Pareto) -> dict[str, Any]:
    """The front as JSON values."""
    return asdict(found)
