"""What the page's template shows of curves: a plot's data, the table that says the same, and where they stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.engine.config import PLAIN
from limbeck.leaderboard.curves import Curve, Curves, Point
from limbeck.leaderboard.figures import BLANK, number
from limbeck.leaderboard.render_curves import (
    curves_metric,
    curves_note,
    curves_places,
    curves_title,
    gain_text,
    teacher_text,
)
from limbeck.leaderboard.site.svg_plots import curves as draw
from limbeck.leaderboard.site.svg_plots import series_class
from limbeck.leaderboard.site.table import TURNED

Popovers = Mapping[str, str]  # ids of the popovers with the records, by method
_LOG_FROM = 8  # largest ÷ smallest number from which a logarithmic axis reads better


def place_curves(found: Sequence[Curves], views: Sequence[dict[str, Any]]) -> list[tuple[str, Curves]]:
    """Give every group's view its `curves`, of its own rounds, and `across`, the curves of several pairs that stand
    above the first of these; returns each one's slug.

    Args:
        views: of `group_view`.
    """
    known = {(v["benchmark"], v["version"], v["pair"]): v for v in views}
    for view in views:
        view |= dict(curves=[], across=[])
    slugs = []
    for one in found:
        pairs = [known[one.benchmark, one.version, pair] for pair in one.pairs]
        slug = f"{pairs[0]['slug']}-{one.metric}-by-{one.kind}"
        opened = [{row["method"]: row["popover"] for row in view["rows"]} for view in pairs]
        by_x = dict.fromkeys(one.xs, opened[0]) if one.kind == "rounds" else dict(zip(one.xs, opened))
        first = next(view for view in views if view in pairs)
        first["curves" if one.kind == "rounds" else "across"].append(curves_view(one, slug, by_x))
        slugs.append((slug, one))
    return slugs


def curves_view(found: Curves, slug: str, popovers: Mapping[int, Popovers]) -> dict[str, Any]:
    """Everything that the template shows of one.

    Args:
        popovers: by number.
    """
    plot = _plot(found, popovers)
    label = f"{curves_title(found)} of each method with its interval; the table below has the same figures"
    return dict(
        slug=slug,
        name=found.name,
        version=found.version,
        title=curves_title(found),
        heading=f"{curves_metric(found)} by {found.axis}",
        axis=found.axis,
        count=found.count,
        turned=TURNED if found.higher_is_better is False else "",
        columns=[str(x) for x in found.xs],
        rows=[_row(found, curve, popovers) for curve in found.curves],
        has_gains=found.is_primary and len(found.curves) > 1,
        note=curves_note(found),
        json=f"tables/{slug}.json",
        plot=plot,
        svg=draw(plot, label),
        key=[dict(method=s["method"], class_=series_class(s)) for s in plot["series"]],
    )


def _row(found: Curves, curve: Curve, popovers: Mapping[int, Popovers]) -> dict[str, Any]:
    points = {p.x: p for p in curve.points}
    return dict(
        method=curve.method,
        is_plain=curve.method == PLAIN,
        flagged=bool(curve.flags),
        cells=[_cell(found, points.get(x), popovers[x].get(curve.method, "")) for x in found.xs],
    )


def _cell(found: Curves, point: Point | None, popover: str) -> dict[str, str]:
    if point is None:
        return dict(text=BLANK, half="", gain="", random="", popover="")
    places = curves_places(found)
    half = point.estimate.half
    return dict(
        text=number(point.estimate.mean, places),
        half="" if half is None else number(half, places),
        gain=", ".join(gain_text(point.over_plain, places)) if point.over_plain else "",
        random=", ".join(gain_text(point.over_random, places)) if point.over_random else "",
        popover=popover,
    )


def _plot(found: Curves, popovers: Mapping[int, Popovers]) -> dict[str, Any]:
    xs = found.xs
    strategies = list(dict.fromkeys(c.strategy for c in found.curves if c.strategy is not None))
    series = []
    for index, curve in enumerate(found.curves):
        loop = curve.strategy is not None
        series.append(
            dict(
                method=curve.method,
                plain=curve.method == PLAIN,
                flagged=bool(curve.flags),
                hue=strategies.index(curve.strategy) if curve.strategy is not None else index,
                dash=curve.training if loop else 0,
                points=[_plot_point(found, curve, p, popovers) for p in curve.points],
            )
        )
    return dict(
        title=curves_title(found).partition(" by ")[0],
        axis=found.axis,
        log=found.kind != "rounds" and xs[0] > 0 and xs[-1] / xs[0] >= _LOG_FROM,
        xs=xs,
        teacher=found.teacher,
        teacher_title=teacher_text(found),
        lower=found.higher_is_better is False,
        series=series,
    )


def _plot_point(found: Curves, curve: Curve, point: Point, popovers: Mapping[int, Popovers]) -> dict[str, Any]:
    one, places = point.estimate, curves_places(found)
    said = f"{curve.method}, {point.x} {found.axis}: {number(one.mean, places)}"
    said += "" if one.half is None else f" ± {number(one.half, places)}"
    return dict(
        x=point.x,
        mean=one.mean,
        low=one.mean if one.low is None else one.low,
        high=one.mean if one.high is None else one.high,
        hover=said,
        popover=popovers[point.x].get(curve.method, ""),
    )
