"""The plots of the site, drawn once at build time: means with intervals, cost against quality, ablations, curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from limbeck.leaderboard.site.svg import Plot, Scale, apart, gutter, measured, padded, tick

_ROW = 25


def dots(data: Mapping[str, Any], label: str, *, zero: bool = False) -> Any:
    """Mean and interval of each row, best on top, small dots for seeds; teacher's and plain's means as dotted lines.

    Args:
        data: `title`, `higher`, and `rows` of `method`, `role`, `mean`, `low`, `high`, `seeds`, `hover`, `popover`.
        zero: rule a line at 0, and have it in the picture.
    """
    rows = sorted(data["rows"], key=lambda r: r["mean"], reverse=data["higher"])
    plot = Plot(label, 56 + _ROW * len(rows), left=gutter(r["method"] for r in rows))
    ends = [v for r in rows for v in (r["low"], r["high"], *r["seeds"])] + [0.0] * zero
    x = measured([r["mean"] for r in rows], ends, plot.left, plot.right, lower=not data["higher"])
    plot.x_axis(x, data["title"])
    for row in rows:
        if row["role"] != "method":
            plot.line(x(row["mean"]), plot.top, x(row["mean"]), plot.bottom, f"rule {row['role']}")
    if zero:
        plot.line(x(0.0), plot.top, x(0.0), plot.bottom, "rule plain")
    for i, row in enumerate(rows):
        y = plot.top + _ROW * (i + 0.5)
        plot.text(plot.left - 8, y + 4, row["method"], f"name {row['role']}", "end")
        mark = plot.mark(_kind(row), row["popover"], row["hover"])
        plot.line(x(row["low"]), y, x(row["high"]), y, "bar", mark)
        for seed in row["seeds"]:
            plot.add("circle", mark, cx=x(seed), cy=y + 8.0, r=1.8, class_="seed")
        plot.add("circle", mark, cx=x(row["mean"]), cy=y, r=5.0)
    return plot.markup()


def against(data: Mapping[str, Any], key: str, name: str, label: str, *, front: bool = False) -> Any:
    """What a row costs along x, how good it is along y: up and left is better.

    Args:
        data: as of `dots`, with the cost as `key`; rows without it are left out.
        front: join the rows that are `on_front`, by cost as they come, and name these alone.
    """
    rows = [r for r in data["rows"] if r.get(key) is not None]
    on = [r for r in rows if r["on_front"]] if front else rows
    height = max(300, 70 + 17 * len(on))
    plot = Plot(label, height, top=24, right=gutter(r["method"] for r in on) + 14)
    costs = [float(r[key]) for r in rows]
    log = min(costs) > 0 and max(costs) >= 10 * min(costs)
    if log:
        low, high = padded(math.log10(min(costs)), math.log10(max(costs)), 0.08)
        x = Scale(10**low, 10**high, plot.left, plot.right, log=True)
    else:
        x = Scale(0.0, max(costs) * 1.08 or 1.0, plot.left, plot.right)
    ends = [v for r in rows for v in ((r["mean"],) if front else (r["low"], r["high"]))]
    y = measured([r["mean"] for r in rows], ends, plot.bottom, plot.top, lower=not data["higher"])
    plot.x_axis(x, name)
    plot.y_axis(y, data["title"])
    if front:
        line = " ".join(f"{x(r[key]):.1f},{y(r['mean']):.1f}" for r in on)
        plot.add("polyline", points=line, class_="front")
    places = apart([y(r["mean"]) for r in on], 15, plot.top + 6, plot.bottom - 4)
    for row, place in zip(on, places, strict=True):
        plot.line(x(row[key]), y(row["mean"]), plot.right + 8, place, "leader")
        plot.text(plot.right + 11, place + 4, row["method"], f"name {row['role']}")
    for row in rows:
        mark = plot.mark(_kind(row), row["popover"], row["hover"])
        if not front:
            plot.line(x(row[key]), y(row["low"]), x(row[key]), y(row["high"]), "bar thin", mark)
        plot.add("circle", mark, cx=x(row[key]), cy=y(row["mean"]), r=5.0 if row in on else 3.0)
    return plot.markup()


def ablation(data: Mapping[str, Any], label: str) -> Any:
    """One option of a method: numbers along the x axis, else one line a value; the plain student's mean dashed."""
    points = list(data["points"])
    rules = [] if data["plain"] is None else [("plain", data["plain"], "plain")]
    if data["axis"] == "nominal":
        plot = Plot(label, 70 + _ROW * len(points), left=gutter(p["label"] for p in points), top=22)
        value, measure_from = plot.left, plot.right
    else:
        unread = [p for p in points if p["x"] is None]
        points = [p for p in points if p["x"] is not None]
        rules += [(data["method"], p["mean"], "base") for p in unread]
        plot = Plot(label, 250, top=24, right=gutter(r[0] for r in rules) if rules else 14)
        value, measure_from = plot.bottom, plot.top
    means = [p["mean"] for p in points] + [r[1] for r in rules]
    ends = [v for p in points for v in (p["low"], p["high"])] + [r[1] for r in rules]
    scale = measured(means, ends, value, measure_from, lower=data["lower"], part=0.08)
    if data["axis"] == "nominal":
        _values(plot, scale, data, points, rules)
    else:
        _numbers(plot, scale, data, points, rules)
    return plot.markup()


def _values(plot: Plot, x: Scale, data: Mapping[str, Any], points: Sequence[Any], rules: Sequence[Any]) -> None:
    plot.x_axis(x, data["title"])
    for name, at, kind in rules:
        plot.line(x(at), plot.top, x(at), plot.bottom, f"rule {kind}")
        plot.text(x(at), plot.top - 6, name, f"name {kind}", "middle")
    for i, point in enumerate(points):
        y = plot.top + _ROW * (i + 0.5)
        plot.text(plot.left - 8, y + 4, point["label"], "name base" if point["base"] else "name", "end")
        mark = plot.mark(_point_kind(point), point["popover"], point["hover"])
        plot.line(x(point["low"]), y, x(point["high"]), y, "bar", mark)
        _symbol(plot, mark, x(point["mean"]), y, point["base"])


def _numbers(plot: Plot, y: Scale, data: Mapping[str, Any], points: Sequence[Any], rules: Sequence[Any]) -> None:
    log = data["axis"] == "log"
    first, last = (math.log10(p["x"]) if log else p["x"] for p in (points[0], points[-1]))
    low, high = padded(first, last, 0.06)
    x = Scale(10**low if log else low, 10**high if log else high, plot.left, plot.right, log=log)
    plot.x_axis(x, data["option"], _spaced([(p["x"], p["label"], p["base"]) for p in points], x))
    plot.y_axis(y, data["title"])
    for name, at, kind in rules:
        plot.line(plot.left, y(at), plot.right, y(at), f"rule {kind}")
        plot.text(plot.right + 5, y(at) + 4, name, f"name {kind}")
    plot.add("polyline", points=" ".join(f"{x(p['x']):.1f},{y(p['mean']):.1f}" for p in points), class_="join")
    for point in points:
        mark = plot.mark(_point_kind(point), point["popover"], point["hover"])
        plot.line(x(point["x"]), y(point["low"]), x(point["x"]), y(point["high"]), "bar thin", mark)
        _symbol(plot, mark, x(point["x"]), y(point["mean"]), point["base"])


def _symbol(plot: Plot, mark: Any, x: float, y: float, base: bool) -> None:
    """A dot, or a diamond for a method's own value."""
    if base:
        plot.add("path", mark, d=f"M{x:.1f} {y - 7:.1f}l7 7-7 7-7-7z")
    else:
        plot.add("circle", mark, cx=x, cy=y, r=4.5)


def _spaced(points: Sequence[tuple[float, str, bool]], scale: Scale) -> list[tuple[float, str]]:
    """Ticks that do not run into each other, the method's own value first."""
    room = 12 + 6.5 * max(len(label) for _, label, _ in points)
    kept: list[tuple[float, str]] = []
    for x, label, _ in sorted(points, key=lambda p: not p[2]):
        if all(abs(scale(k) - scale(x)) >= room for k, _ in kept):
            kept.append((x, label))
    return kept


def curves(data: Mapping[str, Any], label: str) -> Any:
    """A line a method by a number; hues tell strategies or methods apart, dashes the training; side by side."""
    series, xs = data["series"], data["xs"]
    teacher = data["teacher"]
    right = 14 if teacher is None else gutter([data["teacher_title"]])
    plot = Plot(label, 400 if len(series) > 8 else 320, top=24, right=right)
    log = data["log"]
    across = [math.log10(x) if log else float(x) for x in xs]
    low, high = padded(across[0], across[-1], 0.05)
    x = Scale(10**low if log else low, 10**high if log else high, plot.left, plot.right, log=log)
    least = min(x(b) - x(a) for a, b in pairwise(xs))
    step = min(0.3 * least, 0.03 * (x(xs[-1]) - x(xs[0]))) / max(1, len(series) - 1)
    points = [p for s in series for p in s["points"]]
    extra = [] if teacher is None else [teacher]
    means, ends = [p["mean"] for p in points] + extra, [v for p in points for v in (p["low"], p["high"])] + extra
    y = measured(means, ends, plot.bottom, plot.top, lower=data["lower"])
    plot.x_axis(x, data["axis"], _spaced([(v, tick(v), False) for v in xs], x))
    plot.y_axis(y, data["title"])
    if teacher is not None:
        plot.line(plot.left, y(teacher), plot.right, y(teacher), "rule teacher")
        plot.text(plot.right + 5, y(teacher) + 4, data["teacher_title"], "name teacher")
    for i, one in enumerate(series):
        shift = step * (i - (len(series) - 1) / 2)
        group = plot.add("g", class_=f"series {series_class(one)}", data_series=i)
        joined = " ".join(f"{x(p['x']) + shift:.1f},{y(p['mean']):.1f}" for p in one["points"])
        plot.add("polyline", group, points=joined)
        for p in one["points"]:
            mark = plot.mark("open" if one["flagged"] else "", p["popover"], p["hover"])
            plot.root.remove(mark)
            group.append(mark)
            at = x(p["x"]) + shift
            plot.line(at, y(p["low"]), at, y(p["high"]), "bar thin", mark)
            plot.add("circle", mark, cx=at, cy=y(p["mean"]), r=4.0)
    return plot.markup()


def training(epochs: Sequence[int], lines: Sequence[Mapping[str, Any]], axis: str, label: str, said: str) -> Any:
    """Lines by epoch, each named at its end, broken where an epoch has no value; logarithmic where values differ much.

    Args:
        lines: `name`, what `series_class` takes, and `values`, one an epoch or None; each line has one at least.
        said: the lines in words, for those who do not see them.
    """
    values = [v for one in lines for v in one["values"] if v is not None]
    plot = Plot(label, max(240, 66 + 15 * len(lines)), top=24, right=gutter(one["name"] for one in lines))
    plot.describe(said)
    least, most = min(values), max(values)
    log = least > 0 and most >= 10 * least
    low, high = padded(math.log10(least), math.log10(most), 0.05) if log else padded(least, most, 0.05)
    x = Scale(float(epochs[0]), float(epochs[-1]), plot.left, plot.right)
    y = Scale(10**low if log else low, 10**high if log else high, plot.bottom, plot.top, log=log)
    plot.x_axis(x, "epoch", [(v, tick(v)) for v in x.ticks() if v == int(v)])
    plot.y_axis(y, axis)
    xs = x.along(epochs)
    strokes = [_strokes(xs, one["values"], y) for one in lines]
    ends = [one[-1][-1] for one in strokes]
    places = apart([v for _, v in ends], 15, plot.top + 6, plot.bottom - 4)
    for one, parts, end, place in zip(lines, strokes, ends, places, strict=True):
        group = plot.add("g", class_=f"series {series_class(one)}")
        for part in parts:
            plot.add("polyline", group, points=" ".join([f"{a:.1f},{b:.1f}" for a, b in part]))
            if len(part) == 1 or len(epochs) < 8:
                for a, b in part:
                    plot.add("circle", group, cx=a, cy=b, r=3.0)
        plot.line(*end, plot.right + 8, place, "leader", group)
        plot.text(plot.right + 11, place + 4, one["name"], "name", parent=group)
    return plot.markup()


def _strokes(xs: Sequence[float], values: Sequence[float | None], y: Scale) -> list[list[tuple[float, float]]]:
    """The pixels of a line, in pieces with no value missing between their points."""
    found: list[list[tuple[float, float]]] = [[]]
    known = iter(y.along([v for v in values if v is not None]))
    for x, value in zip(xs, values, strict=True):
        if value is not None:
            found[-1].append((x, next(known)))
        elif found[-1]:
            found.append([])
    return [part for part in found if part]


def series_class(one: Mapping[str, Any]) -> str:
    """The classes that give a line its colour and dashes, in the plot and in its key."""
    hue = "plain" if one["plain"] else f"hue{one['hue'] % 8}"
    return f"{hue} dash{(one['dash'] + one['hue'] // 8) % 4}"


def _kind(row: Mapping[str, Any]) -> str:
    return row["role"] + (" open" if row["flagged"] else "")


def _point_kind(point: Mapping[str, Any]) -> str:
    return ("base" if point["base"] else "method") + (" open" if point["flagged"] else "")
