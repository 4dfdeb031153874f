"""Rows: one method's records aggregated over its seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean, median

from limbeck.engine.record import RunRecord
from limbeck.leaderboard.checks import taught
from limbeck.leaderboard.stats import Estimate, Paired, estimate
from limbeck.leaderboard.store import FLAGGED


@dataclass(frozen=True)
class Cell:
    """One metric of one row: its values by seed and their estimate."""

    metric: str
    values: dict[int, float]
    estimate: Estimate


@dataclass(frozen=True)
class CostCells:
    """What a row's runs cost: latency is the median over runs, the others are means; None where not measured."""

    parameters: int
    flops: int | None
    student_latency_ms: float | None
    train_seconds: float
    peak_memory_mb: float
    teacher_forwards: float


@dataclass(frozen=True)
class Row:
    """One method over its seeds.

    gain: over the plain student on shared seeds, in the primary metric; positive is better, whichever way that metric
        goes; None for teacher and plain.
    p: of that gain, Holm-adjusted over the table's ranked methods; the unadjusted one is `gain.p`.
    rank: among plain student and methods; None for a teacher, for flagged rows and below two seeds.
    records: record ids by seed.
    network: the name of what is deployed; other_network: whether its parameters differ from the plain student's.
    assumption: what of the method is ours, not the paper's; None where nothing is.
    from_teacher: whether its runs start from the teacher's weights, where the plain student has its own.
    """

    method: str
    role: str
    cells: dict[str, Cell]
    cost: CostCells
    records: dict[int, str]
    gain: Paired | None = None
    p: float | None = None
    gap_closed: float | None = None
    rank: int | None = None
    flags: tuple[str, ...] = ()
    network: str = ""
    other_network: bool = False
    assumption: str | None = None
    from_teacher: bool = False

    @property
    def marks(self) -> str:
        """'†' for what is ours, not the paper's, '‡' for another network than the plain student's, '§' for its start.

        A table explains them below.
        """
        return "†" * (self.assumption is not None) + "‡" * self.other_network + "§" * self.from_teacher

    @property
    def n(self) -> int:
        """How many runs stand behind the row."""
        return len(self.records)


def build_row(seeds: Mapping[int, RunRecord], role: str, name: str | None = None) -> Row:
    """Aggregate one method's records, without what needs the other rows; the name is the records' if not given."""
    records = list(seeds.values())
    metrics = {m: None for r in records for m in r.metrics}
    cells = {}
    for metric in metrics:
        values = {s: r.metrics[metric] for s, r in seeds.items() if metric in r.metrics}
        cells[metric] = Cell(metric, values, estimate(list(values.values())))
    latencies = [r.cost.student_latency_ms for r in records if r.cost.student_latency_ms is not None]
    cost = CostCells(
        parameters=records[0].student.parameters,
        flops=records[0].student.flops,
        student_latency_ms=median(latencies) if latencies else None,
        train_seconds=fmean(r.cost.train_seconds for r in records),
        peak_memory_mb=fmean(r.cost.peak_memory_mb for r in records),
        teacher_forwards=fmean(r.cost.teacher_forwards for r in records),
    )
    flags = tuple(s for s in FLAGGED if any(r.status == s for r in records))
    return Row(
        name or records[0].method,
        role,
        cells,
        cost,
        {s: r.id for s, r in seeds.items()},
        flags=flags,
        network=records[0].student.name,
        assumption=assumption_of(records),
        from_teacher=any(map(taught, records)),
    )


def assumption_of(records: Iterable[RunRecord]) -> str | None:
    """What some runs say is ours, not the paper's; each sentence once."""
    return " ".join(dict.fromkeys(r.assumption for r in records if r.assumption)) or None
