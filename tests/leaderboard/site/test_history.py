"""Training curves on a record's page: to scale, in words too, and nothing where there is none."""

from __future__ import annotations

from itertools import pairwise
from typing import Any
from xml.etree.ElementTree import Element, fromstring

import pytest

from limbeck.engine.record import RunRecord
from limbeck.leaderboard.site.history import LINES, history_view
from tests.leaderboard.fabricate import fabricate
from tests.leaderboard.small_site import EVIL

EPOCHS = [1, 2, 3, 4, 5]


def curves(**changes: Any) -> dict[str, Any]:
    value: dict[str, Any] = dict(
        epochs=EPOCHS,
        learning_rate=[0.05, 0.04, 0.03, 0.02, 0.01],
        losses={"loss": [3.0, 2.0, 1.5, 1.25, 1.0], "student.loss_ce": [2.0, 1.0, 0.5, 0.75, 0.5]},
        val_epochs=[2, 4, 5],
        val_metrics={"top1": [80.0, 90.0, 85.0], "nll": [1.0, 0.5, 0.4]},
    )
    value["losses"]["kd.loss_kd"] = [a - b for a, b in zip(value["losses"]["loss"], value["losses"]["student.loss_ce"])]
    return value | changes


def drawn(record: RunRecord) -> list[Element]:
    return [fromstring(str(one["svg"])) for one in history_view(record)]


def lines(svg: Element) -> dict[str, list[list[tuple[float, float]]]]:
    """The polylines of each named line."""
    found = {}
    for group in svg.iter("g"):
        name = group.findtext("text")
        assert name is not None
        strokes = [p.get("points", "").split() for p in group.iter("polyline")]
        found[name] = [[tuple(map(float, p.split(","))) for p in stroke] for stroke in strokes]
    return found


def ticks(svg: Element, axis: str) -> dict[str, float]:
    """Text of the numbers along an axis, and where they are."""
    anchor = dict(x="middle", y="end")[axis]
    found = (t for t in svg.iter("text") if t.get("class") == "tick" and t.get("text-anchor") == anchor)
    return {t.text or "": float(t.get(axis, "nan")) - 4.0 * (axis == "y") for t in found}


def test_losses_and_the_primary_metric_are_drawn_to_scale_and_said():
    loss, metric = drawn(fabricate("KD", 0, history=curves()))
    assert set(lines(loss)) == {"sum", "student.loss_ce", "kd.loss_kd"}
    (total,) = lines(loss)["sum"]
    across, up = ticks(loss, "x"), ticks(loss, "y")
    assert {"1", "5"} <= set(across) <= set("12345")
    assert [x for x, _ in total] == pytest.approx(
        [across["1"] + i * (across["5"] - across["1"]) / 4 for i in range(5)], abs=0.1
    )
    per_unit = (up["2"] - up["1"]) / 1.0
    want = [up["1"] + (v - 1.0) * per_unit for v in (3.0, 2.0, 1.5, 1.25, 1.0)]
    assert per_unit < 0  # less is lower
    assert [y for _, y in total] == pytest.approx(want, abs=0.15)
    (tested,) = lines(metric)["validation"]
    across = ticks(metric, "x")
    assert [x for x, _ in tested] == pytest.approx([across["2"], across["4"], across["5"]], abs=0.1)
    assert tested[1][1] < tested[2][1] < tested[0][1]  # 90 above 85 above 80
    assert loss.get("role") == metric.get("role") == "img"
    assert loss.get("aria-label") == "Mean loss of each epoch"
    said = loss.findtext("desc") or ""
    assert said.startswith("sum from 3 in epoch 1 to 1 in epoch 5, lowest 1, highest 3; student.loss_ce from 2 ")
    assert metric.findtext("desc") == "validation from 80 in epoch 2 to 85 in epoch 5, lowest 80, highest 90"


def test_values_that_differ_much_have_a_logarithmic_axis():
    loss = drawn(fabricate("KD", 0, history=curves(losses={"loss": [100.0, 10.0, 1.0, 0.1, 0.01]})))[0]
    ((stroke,),) = lines(loss).values()
    steps = {round(b[1] - a[1], 0) for a, b in pairwise(stroke)}
    assert len(steps) == 1  # equal ratios are equal steps


def test_a_term_that_is_the_sum_is_drawn_once():
    loss = drawn(fabricate("KD", 0, history=curves(losses={"loss": [1.0] * 5, "student.loss_ce": [1.0] * 5})))[0]
    assert set(lines(loss)) == {"student.loss_ce"}
    loss = drawn(fabricate("KD", 0, history=curves(losses={"loss": [1.0] * 5, "student.loss_ce": [0.5] * 5})))[0]
    assert set(lines(loss)) == {"sum", "student.loss_ce"}


def test_epochs_without_a_value_are_gaps():
    gappy = [None, 2.0, 1.0, None, 0.5]
    loss = drawn(fabricate("KD", 0, history=curves(losses={"loss": [2.0] * 5, "kd.loss_kd": gappy})))[0]
    strokes = lines(loss)["kd.loss_kd"]
    assert [len(s) for s in strokes] == [2, 1]
    (group,) = (g for g in loss.iter("g") if g.findtext("text") == "kd.loss_kd")
    assert len(list(group.iter("circle"))) == 3


def test_no_history_or_a_single_point_shows_nothing():
    assert history_view(fabricate("KD", 0)) == []
    one = dict(epochs=[1], learning_rate=[0.1], losses={"loss": [1.0]}, val_epochs=[1], val_metrics={"top1": [1.0]})
    assert history_view(fabricate("KD", 0, history=one)) == []
    (loss,) = history_view(fabricate("KD", 0, history=curves(val_epochs=[5], val_metrics={"top1": [85.0]})))
    assert loss["text"] == "Mean loss of each epoch"
    (metric,) = history_view(fabricate("KD", 0, history=curves(losses={})))
    assert metric["text"] == "top-1 on validation after each epoch that had one"
    (loss,) = history_view(fabricate("KD", 0, history=curves(val_metrics={"nll": [1.0, 0.5, 0.4]})))
    assert loss["label"] == "Plot: Mean loss of each epoch"


def test_many_terms_are_cut_and_counted():
    many = {"loss": [20.0] * 5} | {f"kd.loss_{i}": [float(i)] * 5 for i in range(20)}
    (loss, _) = history_view(fabricate("KD", 0, history=curves(losses=many)))
    assert len(lines(fromstring(str(loss["svg"])))) == LINES
    assert loss["text"] == f"Mean loss of each epoch; {21 - LINES} more terms are in the record's JSON"


def test_a_loop_says_whose_curves_they_are():
    record = fabricate("KD", 0, config=dict(loop=dict(type="Halving", start=8)), history=curves())
    assert history_view(record)[0]["text"] == "Mean loss of each epoch, of the last of this run's trainings"


@pytest.mark.parametrize(
    "values",
    [
        [0.0, 0.0, 0.0, 0.0, 0.0],
        [1e308, -1e308, 1.0, 2.0, 3.0],
        [1e-320, 5e-324, 1e300, 1e-5, 1.0],
        [-5.0, -5.0, -5.0, -5.0, -5.0],
        [1.0, 1.0 + 2e-16, 1.0, 1.0, 1.0],
        [1e30, 1e-30, 1.0, 1.0, 1.0],
        [1e308] * 5,
    ],
)
def test_wild_values_break_nothing(values):
    for svg in drawn(fabricate("KD", 0, history=curves(losses={"loss": values}))):
        for strokes in lines(svg).values():
            assert all(0 <= v <= 700 for stroke in strokes for point in stroke for v in point)


def test_names_are_escaped():
    record = fabricate("KD", 0, history=curves(losses={EVIL: [1.0] * 5, "loss": [2.0] * 5}))
    text = "".join(str(one["svg"]) + str(one["label"]) for one in history_view(record))
    assert "<script" not in text
    assert "<b>" not in text
