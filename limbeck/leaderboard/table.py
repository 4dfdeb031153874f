"""Tables: one group's records aggregated into rows; computed each time, never stored."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from limbeck.engine.config import PLAIN, TEACHER
from limbeck.engine.record import RunRecord
from limbeck.leaderboard.ablation import Ablation, build_ablations
from limbeck.leaderboard.columns import build_gains, build_rows
from limbeck.leaderboard.rows import Row
from limbeck.leaderboard.runs import reference_rows
from limbeck.leaderboard.stats import CONFIDENCE, Paired, gap_closed, holm, ranks
from limbeck.leaderboard.store import Group

if TYPE_CHECKING:
    import polars as pl

# Spellings that readers expect; any other metric is shown by its own name and without an arrow.
TITLES = {
    "top1": "top-1",
    "top5": "top-5",
    "nll": "NLL",
    "ece": "ECE",
    "agreement": "agreement",
    "aulc": "AULC",
    "top1_ce_head": "top-1, CE head",
    "top1_kd_head": "top-1, KD head",
    "top1_mix": "top-1, even mix",
    "alpha": "α",
    "beta": "β",
    "bbox_mAP": "box AP",
    "fid": "FID",
    "bev_ap40": "BEV AP40",
    "bev_ap40_strict": "BEV AP40, strict",
    "3d_ap40": "3D AP40",
    "3d_ap40_strict": "3D AP40, strict",
    "label_agreement": "label agreement",
    "label_entropy": "label entropy",
    "diversity_share": "diversity share",
    "mse_to_teacher": "MSE to teacher",
    "calls": "network calls",
}
HIGHER = {"top1", "top5", "agreement", "mIoU", "bbox_mAP", "segm_mAP", "mAP", "NDS", "bev_ap40", "3d_ap40"}
HIGHER |= {"aulc", "top1_ce_head", "top1_kd_head", "top1_mix"}
HIGHER |= {"precision", "recall", "coverage", "diversity_share", "label_agreement"}  # of generated images
LOWER = {"nll", "ece", "fid", "FID", "mse_to_teacher"}
LOWER_STARTS = ("FD-", "MMD2-")  # of names that end in the feature net: 'FD-digits'
NO_COLUMN = {"bev_ap_exact", "3d_ap_exact", "ap40_ceiling"}  # records have them; a table would be too wide
NO_COLUMN |= {"top1_mix_half", "top1_logit_average", "ece_ce_head", "ece_kd_head"}
NO_COLUMN_ENDS = ("_bias", "_floor")  # of a Fréchet distance: what it is where there is nothing to see


@dataclass(frozen=True)
class Table:
    """One group as rows: teachers first, then the plain student, then the methods, best first.

    reference: the teacher row that the gap closed is measured by.
    """

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
    reference: str | None
    rows: tuple[Row, ...]
    environments: tuple[dict[str, Any], ...]
    confidence: float = CONFIDENCE
    warnings: tuple[str, ...] = field(default=())
    ablations: tuple[Ablation, ...] = field(default=())


def build_table(group: Group) -> Table:
    """Aggregate a group's records."""
    return build_tables([group])[0]


def build_tables(groups: Iterable[Group]) -> list[Table]:
    """One table a group; all are computed in columns at once."""
    import polars as pl

    found = list(groups)
    if not found:
        return []
    runs = pl.concat([g.runs.with_columns(pl.lit(i, pl.UInt32).alias("group")) for i, g in enumerate(found)])
    rows, gains, references = build_rows(runs), build_gains(runs), reference_rows(runs)
    machines = _machines(runs)
    return [_table(g, rows.get(i, []), gains.get(i, {}), references.get(i), machines[i]) for i, g in enumerate(found)]


def _table(
    group: Group,
    rows: list[Row],
    gains: Mapping[str, tuple[Paired, float]],
    reference: str | None,
    machines: tuple[dict[str, Any], ...],
) -> Table:
    runs = group.runs
    kinds = runs["kind"]
    students = runs.filter(kinds == "student")
    shown = students if len(students) else runs
    sample = group.first
    primary, higher = sample["primary"], sample["higher"]
    teachers = [r for r in rows if r.role == TEACHER]
    measured = next((t for t in teachers if t.method == reference), None)
    compared = _compared([r for r in rows if r.role != TEACHER], gains, measured, primary, higher)
    compared.sort(key=lambda r: (r.role != PLAIN, _order(r, primary, higher), r.method))
    names = shown["metrics"].explode().unique(maintain_order=True)
    return Table(
        name=group.name,
        benchmark=group.benchmark,
        version=group.version,
        pair=group.pair,
        task=sample["task"],
        data=json.loads(sample["data"]),
        selection=sample["selection"],
        primary=primary,
        higher_is_better=higher,
        metrics=(primary, *(m for m in names if m != primary and _has_column(m, primary))),
        teacher=", ".join(dict.fromkeys(t.network for t in teachers)) or None,
        student=sample["network"] if len(students) else "",
        reference=reference,
        rows=(*teachers, *compared),
        environments=machines,
        warnings=tuple(group.warnings),
        ablations=build_ablations(group) if (kinds == "variant").any() else (),
    )


def _has_column(metric: str, primary: str) -> bool:
    """Of a further test set, 'kitti-frames.bev_ap40', the primary metric alone; 'top1@40' belongs to a curve."""
    if "@" in metric:
        return False
    data, _, name = metric.rpartition(".")
    return name == primary if data else name not in NO_COLUMN and not _beside(name)


def _beside(name: str) -> bool:
    """Whether a metric is no figure of a model, but says how to read one: 'FD-digits_floor'."""
    return name.startswith(LOWER_STARTS) and name.endswith(NO_COLUMN_ENDS)


def _compared(
    rows: list[Row], gains: Mapping[str, tuple[Paired, float]], teacher: Row | None, primary: str, higher: bool
) -> list[Row]:
    """Add gains, adjusted p, gap closed, rank and what differs from the plain student, which need the other rows."""
    plain = next((r for r in rows if r.role == PLAIN), None)
    found = [gains.get(r.method.lower()) for r in rows]
    adjusted = holm([None if g is None or r.flags else g[0].p for r, g in zip(rows, found)])
    ranked = [r for r in rows if not r.flags]
    placed = dict(
        zip(
            (r.method for r in ranked),
            ranks([r.cells[primary].estimate for r in ranked], higher_is_better=higher),
        )
    )
    done = []
    for row, known, p in zip(rows, found, adjusted):
        closed = None
        gain, base = known or (None, None)
        if gain is not None and base is not None and teacher is not None:
            top = teacher.cells[primary].estimate.mean
            mean = base + gain.difference.mean if higher else base - gain.difference.mean
            closed = gap_closed(mean, base, top, higher_is_better=higher)
        other = plain is not None and row.cost.parameters != plain.cost.parameters
        rank = placed.get(row.method)
        done.append(replace(row, gain=gain, p=p, gap_closed=closed, rank=rank, other_network=other))
    return done


def _order(row: Row, primary: str, higher: bool) -> float:
    mean = row.cells[primary].estimate.mean
    return -mean if higher else mean


def environments(records: Iterable[RunRecord]) -> tuple[dict[str, Any], ...]:
    """The distinct environments of some records, most frequent first, each with how many runs it had."""
    counts = Counter(tuple(r.environment.model_dump().items()) for r in records)
    return tuple({**dict(key), "runs": n} for key, n in counts.most_common())


def _machines(runs: pl.DataFrame) -> dict[int, tuple[dict[str, Any], ...]]:
    """The `environments` of the runs of each group."""
    import polars as pl

    counts = runs.group_by("group", "environment", maintain_order=True).len()
    found: dict[int, tuple[dict[str, Any], ...]] = {}
    for number, text, n in counts.sort(pl.col("len"), descending=True, maintain_order=True).iter_rows():
        found[number] = (*found.get(number, ()), {**json.loads(text), "runs": n})
    return found


def machines_of(runs: pl.DataFrame) -> tuple[dict[str, Any], ...]:
    """The `environments` of the runs of all groups; one that is in several groups counts once."""
    import polars as pl

    once = runs.unique("id", keep="first", maintain_order=True)
    return _machines(once.with_columns(pl.lit(0, pl.UInt32).alias("group")))[0]


def to_json(table: Table, *, ablations: bool = True) -> dict[str, Any]:
    """The table as JSON values, with its ablations or without; seeds become strings."""
    raw = asdict(table)
    points = [(p, s) for a, b in zip(raw["ablations"], table.ablations) for p, s in zip(a["points"], b.points)]
    for row, source in [*zip(raw["rows"], table.rows), *((p["row"], s.row) for p, s in points)]:
        row["n"] = source.n
    if not ablations:
        del raw["ablations"]
    return raw


def title(metric: str) -> str:
    """A metric's column heading; of a further test set with its name: 'BEV AP40, kitti-frames'."""
    data, _, name = metric.rpartition(".")
    found = TITLES.get(name, name.replace("MMD2-", "MMD²-"))
    return f"{found}, {data}" if data else found


def direction(table: Table, metric: str) -> str:
    """'↑' where higher is better, '↓' where lower is, '' where this is not known."""
    if metric == table.primary:
        return "↑" if table.higher_is_better else "↓"
    name = metric.rpartition(".")[2]
    if name in LOWER or (name.startswith(LOWER_STARTS) and not _beside(name)):
        return "↓"
    return "↑" if name in HIGHER else ""


def decimals(values: Iterable[float]) -> int:
    """Decimals that suit a column: two from 10 on, three from 1 on, else four."""
    largest = max((abs(v) for v in values), default=0.0)
    return 2 if largest >= 10 else 3 if largest >= 1 else 4


def column_decimals(table: Table, metric: str) -> int:
    """Decimals of a metric's column."""
    return decimals(r.cells[metric].estimate.mean for r in table.rows if metric in r.cells)
