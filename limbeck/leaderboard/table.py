"""Tables: one group's records aggregated into rows; computed each time, never stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from statistics import fmean, median
from typing import Any

from limbeck.engine.config import PLAIN, TEACHER, is_teacher
from limbeck.engine.record import RunRecord
from limbeck.leaderboard.stats import CONFIDENCE, Estimate, Paired, estimate, gap_closed, holm, paired, ranks
from limbeck.leaderboard.store import FLAGGED, Group

# Spellings that readers expect; any other metric is shown by its own name and without an arrow.
TITLES = {
    "top1": "top-1",
    "top5": "top-5",
    "nll": "NLL",
    "ece": "ECE",
    "agreement": "agreement",
    "bbox_mAP": "box AP",
    "fid": "FID",
}
HIGHER = {"top1", "top5", "agreement", "mIoU", "bbox_mAP", "segm_mAP", "mAP", "NDS"}
LOWER = {"nll", "ece", "fid", "FID"}


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

    gain: over the plain student on shared seeds, in the primary metric; None for teacher and plain.
    p: of that gain, Holm-adjusted over the table's ranked methods; the unadjusted one is `gain.p`.
    rank: among plain student and methods; None for the teacher, for flagged rows and below two seeds.
    records: record ids by seed; a teacher's are keyed by position where two share a seed.
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

    @property
    def n(self) -> int:
        """How many runs stand behind the row."""
        return len(self.records)


@dataclass(frozen=True)
class Table:
    """One group as rows: teacher first, then the plain student, then the methods, best first."""

    name: str
    benchmark: str
    version: int
    pair: str
    task: str
    data: dict[str, Any]
    selection: str
    primary: str
    higher_is_better: bool
    metrics: tuple[str, ...]
    teacher: str | None
    student: str
    rows: tuple[Row, ...]
    environments: tuple[dict[str, Any], ...]
    confidence: float = CONFIDENCE
    warnings: tuple[str, ...] = field(default=())


def build_table(group: Group) -> Table:
    """Aggregate a group's records."""
    sample = group.sample
    primary, higher = sample.primary_metric, sample.higher_is_better
    rows = [build_row(seeds, PLAIN if name == PLAIN else "method") for name, seeds in group.students.items()]
    teacher = build_row(dict(enumerate(group.teachers)), TEACHER) if group.teachers else None
    if teacher is not None and len({t.seed for t in group.teachers}) == len(group.teachers):
        teacher = build_row({t.seed: t for t in group.teachers}, TEACHER)
    rows = _compared(rows, teacher, primary, higher)
    rows.sort(key=lambda r: (r.role != PLAIN, _order(r, primary, higher), r.method))
    names = {m: None for r in group.records if not is_teacher(r.method) for m in r.metrics}
    names = names or {m: None for r in group.records for m in r.metrics}
    student = next((r.student for r in group.records if not is_teacher(r.method)), None)
    return Table(
        name=group.name,
        benchmark=group.benchmark,
        version=group.version,
        pair=group.pair,
        task=sample.task,
        data=sample.data.model_dump(),
        selection=sample.recipe.selection,
        primary=primary,
        higher_is_better=higher,
        metrics=(primary, *(m for m in names if m != primary)),
        teacher=group.teachers[0].student.name if group.teachers else None,
        student=student.name if student else "",
        rows=tuple([teacher, *rows] if teacher else rows),
        environments=environments(group.records),
        warnings=tuple(group.warnings),
    )


def build_tables(groups: Iterable[Group]) -> list[Table]:
    """One table a group."""
    return [build_table(g) for g in groups]


def build_row(seeds: Mapping[int, RunRecord], role: str) -> Row:
    """Aggregate one method's records, without what needs the other rows."""
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
    return Row(records[0].method, role, cells, cost, {s: r.id for s, r in seeds.items()}, flags=flags)


def _compared(rows: list[Row], teacher: Row | None, primary: str, higher: bool) -> list[Row]:
    """Add gains, adjusted p, gap closed and rank, which need the other rows."""
    plain = next((r for r in rows if r.role == PLAIN), None)
    gains = [
        paired(r.cells[primary].values, plain.cells[primary].values) if plain and r.role != PLAIN else None
        for r in rows
    ]
    adjusted = holm([None if g is None or r.flags else g.p for r, g in zip(rows, gains)])
    ranked = [r for r in rows if not r.flags]
    placed = dict(
        zip(
            (r.method for r in ranked),
            ranks([r.cells[primary].estimate for r in ranked], higher_is_better=higher),
        )
    )
    done = []
    for row, gain, p in zip(rows, gains, adjusted):
        closed = None
        if gain is not None and plain is not None and teacher is not None:
            base = fmean(plain.cells[primary].values[s] for s in gain.seeds)
            top = teacher.cells[primary].estimate.mean
            closed = gap_closed(base + gain.difference.mean, base, top, higher_is_better=higher)
        fields = {k: getattr(row, k) for k in ("method", "role", "cells", "cost", "records", "flags")}
        done.append(Row(**fields, gain=gain, p=p, gap_closed=closed, rank=placed.get(row.method)))
    return done


def _order(row: Row, primary: str, higher: bool) -> float:
    mean = row.cells[primary].estimate.mean
    return -mean if higher else mean


def environments(records: Iterable[RunRecord]) -> tuple[dict[str, Any], ...]:
    """The distinct environments of some records, most frequent first, each with how many runs it had."""
    counts = Counter(tuple(r.environment.model_dump().items()) for r in records)
    return tuple({**dict(key), "runs": n} for key, n in counts.most_common())


def to_json(table: Table) -> dict[str, Any]:
    """The table as JSON values; seeds become strings."""
    raw = asdict(table)
    for row, source in zip(raw["rows"], table.rows):
        row["n"] = source.n
    return raw


def title(metric: str) -> str:
    """A metric's column heading."""
    return TITLES.get(metric, metric)


def direction(table: Table, metric: str) -> str:
    """'↑' where higher is better, '↓' where lower is, '' where this is not known."""
    if metric == table.primary:
        return "↑" if table.higher_is_better else "↓"
    return "↑" if metric in HIGHER else "↓" if metric in LOWER else ""


def decimals(values: Iterable[float]) -> int:
    """Decimals that suit a column: two from 10 on, three from 1 on, else four."""
    largest = max((abs(v) for v in values), default=0.0)
    return 2 if largest >= 10 else 3 if largest >= 1 else 4


def column_decimals(table: Table, metric: str) -> int:
    """Decimals of a metric's column."""
    return decimals(r.cells[metric].estimate.mean for r in table.rows if metric in r.cells)
