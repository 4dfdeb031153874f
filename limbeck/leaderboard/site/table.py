"""What the page's template shows of a table: texts, sort keys, links and the plots' data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from limbeck.engine.config import PLAIN, TEACHER
from limbeck.leaderboard.figures import BLANK, count, number, probability, share
from limbeck.leaderboard.render import marks, summary
from limbeck.leaderboard.render_ablation import ablation_note
from limbeck.leaderboard.rows import Cell, Row
from limbeck.leaderboard.site.ablation import ablation_view
from limbeck.leaderboard.site.addresses import slugs as distinct
from limbeck.leaderboard.site.svg_plots import against, dots
from limbeck.leaderboard.table import Table, column_decimals, direction, title

Link = Callable[[str], str]

TURNED = "; the axis is turned, so up is better"  # said of plots of a metric of which lower is better

_COSTS: dict[str, tuple[str, str, Callable[[float | None], str]]] = {
    "parameters": ("params", "parameters of the model", count),
    "flops": ("FLOPs", "of one sample's forward, 2 per multiply-add", count),
    "student_latency_ms": ("latency ms", "median of one sample's forward", lambda v: number(v, 2)),
    "train_seconds": ("train s", "wall time of training, mean over seeds", lambda v: number(v, 1)),
    "peak_memory_mb": ("peak MB", "peak memory, mean over seeds", lambda v: number(v, 0)),
    "teacher_forwards": ("teacher fwd", "samples that the teacher computed, mean over seeds", count),
}


def slugs(tables: Iterable[Table]) -> list[str]:
    """A distinct name for each table that is safe in ids and file names."""
    return distinct(f"{t.benchmark} {t.pair} v{t.version}" for t in tables)


def group_view(table: Table, slug: str, *, link: Link) -> dict[str, Any]:
    """Everything that the template shows of one table.

    Args:
        link: gives the address of a record's file.
    """
    plain = next((r for r in table.rows if r.role == PLAIN), None)
    places = {m: column_decimals(table, m) for m in table.metrics}
    rows = [_row_view(table, row, plain, f"{slug}-row{i}", link, places) for i, row in enumerate(table.rows)]
    devices = sorted({e["device"] for e in table.environments})
    primary = f"{title(table.primary)} {direction(table, table.primary)}"
    ablations, more = _ablations(table, slug, primary, plain, link, places)
    plot = _plot(table, primary, rows)
    return dict(
        slug=slug,
        name=table.name,
        benchmark=table.benchmark,
        pair=table.pair,
        version=table.version,
        summary=summary(table),
        teacher=table.teacher,
        student=table.student,
        warnings=table.warnings,
        primary=f"metric:{table.primary}",
        primary_title=primary,
        metrics=[dict(name=m, title=f"{title(m)} {direction(table, m)}".strip()) for m in table.metrics],
        columns=_columns(table),
        references=[r for r in rows if r["role"] == TEACHER],
        rows=[r for r in rows if r["role"] != TEACHER],
        notes=marks(table),
        gap_teacher=table.reference if len([r for r in table.rows if r.role == TEACHER]) > 1 else None,
        ablations=ablations,
        ablation_note=ablation_note(table.ablations, higher_is_better=table.higher_is_better),
        variants=more,
        turned="" if table.higher_is_better else TURNED,
        devices=" and ".join(devices),
        json=f"tables/{slug}.json",
        plot=plot,
        svg=_drawn(table, plot, primary),
    )


def _drawn(table: Table, plot: dict[str, Any], primary: str) -> dict[str, Any]:
    """The plots of a table; None for costs that were not measured, or that are the same for all."""
    same = "the table below has the same figures"
    calls = {r["calls"] for r in plot["rows"] if r["calls"] is not None}
    latency = any(r["latency"] is not None for r in plot["rows"])
    label = f"{primary} of each method of {table.name}"
    return dict(
        dots=dots(plot, f"{label} with its interval; {same}"),
        latency=against(plot, "latency", "latency, ms", f"{label} against its latency; {same}") if latency else None,
        calls=against(plot, "calls", "network calls of one image", f"{label} against its network calls; {same}")
        if len(calls) > 1
        else None,
    )


def _ablations(
    table: Table, slug: str, primary: str, plain: Row | None, link: Link, places: Mapping[str, int]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The ablations, and the rows behind their points; a method's own point has the records of its row above."""
    above = {row.method: f"{slug}-row{i}" for i, row in enumerate(table.rows)}
    views, rows = [], []
    for i, ablation in enumerate(table.ablations):
        name = f"{slug}-ablation{i}"
        ids = [above[p.row.method] if p.is_base else f"{name}-{j}" for j, p in enumerate(ablation.points)]
        views.append(ablation_view(table, ablation, name, primary, ids))
        rows += [
            _row_view(table, p.row, plain, popover, link, places)
            for p, popover in zip(ablation.points, ids)
            if not p.is_base
        ]
    return views, rows


def _columns(table: Table) -> list[dict[str, str]]:
    """Columns in order; `first` is the order that a first click gives: best on top."""

    def column(
        key: str, heading: str, first: str = "ascending", help_: str = "", kind: str = "number"
    ) -> dict[str, str]:
        return dict(key=key, title=heading, first=first, help=help_, kind=kind)

    best = "descending" if table.higher_is_better else "ascending"
    gain = "over" if table.higher_is_better else f"by how much {title(table.primary)} is lower than that of"
    gain += " the plain student on shared seeds"
    primary, *others = [
        column(
            f"metric:{m}",
            f"{title(m)} {direction(table, m)}".strip(),
            best if m == table.primary else "ascending" if direction(table, m) == "↓" else "descending",
        )
        for m in table.metrics
    ]
    return [
        column("method", "method", kind="text"),
        column("rank", "rank", help_="1 + methods whose whole interval is better"),
        column("n", "n", "descending", "runs"),
        primary,
        column("gain", "gain", "descending", gain),
        column("p", "p", help_="two-sided paired t-test, Holm-adjusted"),
        column("closed", "gap closed", "descending", "share of the way from plain student to teacher"),
        *others,
        *(column(key, heading, help_=why) for key, (heading, why, _) in _COSTS.items()),
    ]


def _figure(value: float | None, text: str, half: str = "", exact: float | None = None) -> dict[str, Any]:
    return dict(value=value, text=text, half=half, exact=exact)


def _metric_figure(cell: Cell | None, places: int) -> dict[str, Any]:
    if cell is None:
        return _figure(None, BLANK)
    half = cell.estimate.half
    said = "" if half is None else number(half, places)
    return _figure(cell.estimate.mean, number(cell.estimate.mean, places), said, half)


def _row_view(
    table: Table, row: Row, plain: Row | None, popover: str, link: Link, decimals: Mapping[str, int]
) -> dict[str, Any]:
    places = decimals[table.primary]
    cells = {f"metric:{m}": _metric_figure(row.cells.get(m), decimals[m]) for m in table.metrics}
    cells["rank"] = _figure(row.rank, str(row.rank))
    cells["n"] = _figure(row.n, str(row.n))
    cells["p"] = _figure(row.p, probability(row.p))
    cells["closed"] = _figure(row.gap_closed, share(row.gap_closed))
    cells["gain"] = _figure(None, BLANK)
    if row.gain is not None:
        gain = row.gain.difference
        half = "" if gain.half is None else number(gain.half, places)
        cells["gain"] = _figure(gain.mean, number(gain.mean, places, sign=True), half, gain.half)
    for key, (_, _, text) in _COSTS.items():
        value = getattr(row.cost, key)
        cells[key] = _figure(value, text(value))
    base = plain.cells[table.primary].values if plain is not None and row.role == "method" else {}
    runs = []
    for seed, identity in row.records.items():
        values = [number(row.cells[m].values.get(seed) if m in row.cells else None, decimals[m]) for m in table.metrics]
        run = dict(seed=seed, id=identity, link=link(identity), figures=values, plain="", gain="")
        if plain is not None and seed in base:
            over = row.cells[table.primary].values[seed], base[seed]
            difference = over[0] - over[1] if table.higher_is_better else over[1] - over[0]
            run |= dict(plain=link(plain.records[seed]), gain=number(difference, places, sign=True))
        runs.append(run)
    shown = dict(method=row.method, marks=row.marks, role=row.role, flags=row.flags)
    return dict(**shown, popover=popover, cells=cells, runs=runs)


def _plot(table: Table, primary: str, views: list[dict[str, Any]]) -> dict[str, Any]:
    rows = []
    for row, view in zip(table.rows, views):
        cell = row.cells[table.primary]
        found = cell.estimate
        figure = view["cells"][f"metric:{table.primary}"]
        latency = row.cost.student_latency_ms
        said = f"{row.method}: {figure['text']}" + (f" ± {figure['half']}" if figure["half"] else "")
        rows.append(
            dict(
                method=row.method,
                role=row.role,
                flagged=bool(row.flags),
                mean=found.mean,
                low=found.mean if found.low is None else found.low,
                high=found.mean if found.high is None else found.high,
                seeds=list(cell.values.values()),
                latency=latency,
                calls=row.cells["calls"].estimate.mean if "calls" in row.cells else None,
                hover=said + (f", {number(latency, 2)} ms" if latency is not None else ""),
                popover=view["popover"],
            )
        )
    return dict(title=primary, higher=table.higher_is_better, rows=rows)
