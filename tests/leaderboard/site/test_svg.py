"""Static plots: scales, ticks, labels that do not cover each other, and escaped text."""

from __future__ import annotations

import math
from xml.etree.ElementTree import fromstring

import pytest

from limbeck.leaderboard.pareto import on_front
from limbeck.leaderboard.site.svg import Plot, Scale, apart, cut, measured, tick
from limbeck.leaderboard.site.svg_plots import against, dots


def row(method: str, mean: float, **more: object) -> dict[str, object]:
    base = dict(method=method, role="method", flagged=False, mean=mean, low=mean - 1, high=mean + 1, seeds=[mean])
    return base | dict(hover=method, popover="", latency=1.0) | more


def test_scale_maps_ends_and_turns() -> None:
    assert [Scale(0, 10, 100, 200)(v) for v in (0, 5, 10)] == [100, 150, 200]
    assert [Scale(10, 0, 100, 200)(v) for v in (0, 10)] == [200, 100]
    assert Scale(1, 100, 0, 200, log=True)(10) == pytest.approx(100)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (93.2, 98.6), (-12.0, 4.0), (1e-4, 3e-4)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = Scale(low, high, 0, 1).ticks()
    assert 3 <= len(found) <= 8
    assert all(low - 1e-12 <= v <= high + 1e-12 for v in found)
    step = found[1] - found[0]
    assert min(abs(step / 10 ** math.floor(math.log10(step) + 1e-9) - s) for s in (1, 2, 5)) < 1e-6


def test_log_ticks_are_powers() -> None:
    found = Scale(0.5, 2000, 0, 1, log=True).ticks()
    assert {1.0, 10.0, 100.0, 1000.0} <= {round(v, 9) for v in found}


def test_axis_is_turned_and_logarithmic_only_where_lower_is_better_and_means_differ_much() -> None:
    up = measured([1, 100], [-5, 120], 0, 100)
    assert (up.log, up.low < up.high) == (False, True)
    near = measured([10, 20], [5, 25], 0, 100, lower=True)
    assert (near.log, near.low > near.high) == (False, True)
    far = measured([1, 100], [-5, 120], 0, 100, lower=True)
    assert (far.log, far.low > far.high) == (True, True)
    assert math.isfinite(far(-5))  # an interval below 0 ends at the axis' least value


def test_labels_do_not_cover_each_other() -> None:
    found = apart([50, 51, 52, 300, 50], 15, 10, 310)
    assert all(b - a >= 15 - 1e-9 for a, b in zip(sorted(found), sorted(found)[1:], strict=False))
    assert min(found) >= 10
    assert max(found) <= 310


def test_text_is_escaped_and_long_names_keep_both_ends() -> None:
    evil = '<script>alert("1")</script>&'
    plot = Plot(evil, 100)
    plot.text(0, 0, evil)
    plot.mark(evil, evil, evil)
    text = str(plot.markup())
    assert "<script>" not in text
    root = fromstring(text)
    assert (root.get("aria-label"), root[0].text, root[1][0].text) == (evil, evil, evil)
    name = cut("dho-cifar10-jpeg/joined-resnet8-16shot")
    assert name.startswith("dho-cifar10")
    assert name.endswith("16shot")
    assert len(name) <= 34
    assert [tick(v) for v in (0.05, -5, 20, 50_000, 2e6)] == ["0.05", "−5", "20", "50k", "2M"]


def test_dots_stand_where_the_means_are() -> None:
    data = dict(title="top-1", higher=True, rows=[row("a", 90.0), row("b", 95.0), row("c", 92.5)])
    root = fromstring(str(dots(data, "plot")))
    centres = {g.find("title").text: float(g.findall("circle")[-1].get("cx")) for g in root.iter("g")}  # type: ignore[union-attr,arg-type]
    assert centres["c"] == pytest.approx((centres["a"] + centres["b"]) / 2, abs=0.2)
    assert [g.find("title").text for g in root.iter("g")] == ["b", "c", "a"]  # type: ignore[union-attr]


@pytest.mark.parametrize(("higher", "names"), [(True, ["cheap", "good"]), (False, ["cheap", "worst"])])
def test_the_front_joins_what_nothing_cheaper_is_as_good_as(higher: bool, names: list[str]) -> None:
    rows = [
        row("good", 95.0, cost=30),
        row("cheap", 92.0, cost=10),
        row("worst", 80.0, cost=20),
        row("dear", 95.0 if higher else 80.0, cost=40),
    ]
    rows.sort(key=lambda one: one["cost"])
    for one, on in zip(rows, on_front([(r["cost"], r["mean"] if higher else -r["mean"]) for r in rows]), strict=True):
        one["on_front"] = on
    root = fromstring(str(against(dict(title="m", higher=higher, rows=rows), "cost", "cost", "plot", front=True)))
    assert [t.text for t in root.iter("text") if "name" in (t.get("class") or "")] == names
