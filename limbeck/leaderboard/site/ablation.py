"""What the page's template shows of an ablation: its small table and its plot's data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from limbeck.engine.config import PLAIN
from limbeck.leaderboard.ablation import Ablation, Point
from limbeck.leaderboard.figures import number
from limbeck.leaderboard.render_ablation import ablation_cells, ablation_columns
from limbeck.leaderboard.site.svg_plots import ablation as draw
from limbeck.leaderboard.table import Table, column_decimals


def ablation_view(table: Table, ablation: Ablation, slug: str, heading: str, rows: Sequence[str]) -> dict[str, Any]:
    """Everything that the template shows of one ablation.

    Args:
        slug: of the ablation.
        heading: of the primary metric's column.
        rows: for each point the id of the popover with its records.
    """
    places = column_decimals(table, table.primary)
    lines = [
        dict(
            cells=ablation_cells(ablation, point, table.primary, places),
            full="the method's own value" if point.is_base else repr(point.value),
            is_base=point.is_base,
            flagged=bool(point.row.flags),
            popover=popover,
        )
        for point, popover in zip(ablation.points, rows)
    ]
    plot = _plot(table, ablation, heading, rows)
    label = f"{heading} by {ablation.option} of {ablation.method}; the table below has the same figures"
    return dict(
        slug=slug,
        method=ablation.method,
        option=ablation.option,
        columns=ablation_columns(ablation, heading),
        rows=lines,
        axis=ablation.axis,
        has_base=ablation.base is not None,
        assumption=ablation.assumption,
        warning=ablation.warning,
        plot=plot,
        svg=draw(plot, label),
    )


def _plot(table: Table, ablation: Ablation, heading: str, rows: Sequence[str]) -> dict[str, Any]:
    plain = next((r.cells[table.primary].estimate.mean for r in table.rows if r.role == PLAIN), None)
    return dict(
        title=heading,
        method=ablation.method,
        option=ablation.option,
        axis=ablation.axis,
        lower=not table.higher_is_better,
        plain=plain if ablation.method != PLAIN else None,  # there it is a point of its own
        points=[_plot_point(table, ablation, p, popover) for p, popover in zip(ablation.points, rows)],
    )


def _plot_point(table: Table, ablation: Ablation, point: Point, popover: str) -> dict[str, Any]:
    found = point.row.cells[table.primary].estimate
    places = column_decimals(table, table.primary)
    said = f"{ablation.option} {point.label}: {number(found.mean, places)}"
    said += "" if found.half is None else f" ± {number(found.half, places)}"
    unread = point.is_base and point.label == "base"
    return dict(
        label=point.label,
        x=None if unread or ablation.axis == "nominal" else point.value,
        base=point.is_base,
        flagged=bool(point.row.flags),
        mean=found.mean,
        low=found.mean if found.low is None else found.low,
        high=found.mean if found.high is None else found.high,
        hover=said,
        popover=popover,
    )
