"""Tables, gains, curves, verdicts and plots of a metric that is lower where better and has no scale in common."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from rich.console import Console

from limbeck.engine.record import RunRecord
from limbeck.engine.variant import Variant
from limbeck.leaderboard.checks import MixedRecords
from limbeck.leaderboard.compare import compare_methods, render_comparison
from limbeck.leaderboard.curves import build_curves, curves_of
from limbeck.leaderboard.render import render, to_markdown
from limbeck.leaderboard.render_curves import render_curves
from limbeck.leaderboard.site.build import build_site
from limbeck.leaderboard.stats import gained, gap_closed
from limbeck.leaderboard.store import load_results
from limbeck.leaderboard.table import Table, build_table, direction, title
from limbeck.leaderboard.verify import verify_record
from tests.leaderboard.fabricate import fabricate, write_all
from tests.leaderboard.pages import text_of, views_of

# Fréchet distance by seed
FD: dict[str, list[float]] = {
    "plain": [2000.0, 2400.0, 2200.0],
    "PD": [28.0, 31.0, 30.0],
    "BOOT": [66.0, 61.0, 70.0],
}
TEACHER = 6.0
STEPS = {1: 1.0, 2: 0.5, 4: 0.25}  # how large the distances of a pair are


def generated(
    method: str, seed: int, value: float, *, calls: float = 1.0, pair: str = "unet-1step", **changes: Any
) -> RunRecord:
    """A record of generated images, of which nothing was ever made."""
    metrics = {"FD-digits": value, "FD-digits_bias": 1.0, "FD-digits_floor": 2.0, "MMD2-digits": value / 9}
    metrics |= {"recall": 0.5, "density": 1.1, "diversity": 8.0, "calls": calls}
    same: dict[str, Any] = dict(task="image-generation", primary_metric="FD-digits", higher_is_better=False)
    same |= dict(benchmark="diffusion", pair=pair, metrics=metrics, val_metrics={"FD-digits": value})
    if method not in ("teacher", "plain"):
        same |= dict(teacher_record="diffusion/unet-1step/teacher/seed0")
    return fabricate(method, seed, **same, **changes)


def pairs(steps: dict[int, float] = STEPS) -> list[RunRecord]:
    made = [generated("teacher", 0, TEACHER, calls=100.0)]
    for count, factor in steps.items():
        for method, values in FD.items():
            made += [
                generated(method, seed, factor * value, calls=float(count), pair=f"unet-{count}step")
                for seed, value in enumerate(values)
            ]
    return made


def table_of(folder: Path, records: list[RunRecord]) -> Table:
    return build_table(load_results(write_all(folder, records)).groups[0])


def row(table: Table, method: str) -> Any:
    return next(r for r in table.rows if r.method == method)


def printed(show: Any, found: Any) -> str:
    console = Console(file=io.StringIO(), width=160)
    show(found, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


# --- statistics ---


def test_gain_is_positive_where_better() -> None:
    plain, method = (dict(enumerate(FD[name])) for name in ("plain", "PD"))
    found = gained(method, plain, higher_is_better=False)
    assert found is not None
    wanted = scipy.stats.ttest_rel(FD["plain"], FD["PD"])
    assert found.difference.mean == pytest.approx(np.mean(np.subtract(FD["plain"], FD["PD"])))
    assert found.p == pytest.approx(wanted.pvalue)
    assert found.difference.low == pytest.approx(wanted.confidence_interval().low)
    other = gained(method, plain)
    assert other is not None
    assert other.difference.mean == -found.difference.mean


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_smallest_gap_of_a_distance_is_relative(scale: float) -> None:
    def closed(method: float, plain: float, teacher: float, higher: bool = False) -> float | None:
        return gap_closed(method * scale, plain * scale, teacher * scale, higher_is_better=higher)

    assert closed(7.0, 10.0, 6.0) == pytest.approx(0.75)
    assert closed(9.9, 10.0, 9.4) == pytest.approx(1 / 6)
    assert closed(9.9, 10.0, 9.6) is None  # less than a twentieth
    assert closed(7.0, 10.0, 12.0) is None  # a worse teacher


def test_points_stay_points() -> None:
    assert gap_closed(70.2, 70.0, 70.6) == pytest.approx(1 / 3)  # far under a twentieth
    assert gap_closed(70.2, 70.0, 70.4) is None


# --- names ---


def test_directions_and_columns_of_generated_images(tmp_path: Path) -> None:
    table = table_of(tmp_path, pairs({1: 1.0}))
    assert table.metrics == ("FD-digits", "MMD2-digits", "recall", "density", "diversity", "calls")
    assert [direction(table, m) for m in table.metrics] == ["↓", "↓", "↑", "", "", ""]
    for name in ("precision", "coverage", "diversity_share", "label_agreement"):
        assert direction(table, name) == "↑"
    for name in ("FD-fashion-mnist", "MMD2-fashion-mnist", "mse_to_teacher", "street.FD-digits"):
        assert direction(table, name) == "↓"
    for name in ("FD-fashion-mnist_bias", "FD-digits_floor", "memorisation", "label_entropy"):
        assert direction(table, name) == ""
    assert (title("MMD2-digits"), title("calls")) == ("MMD²-digits", "network calls")
    assert set(row(table, "PD").cells) >= {"FD-digits_bias", "FD-digits_floor"}  # the others are there, for JSON


# --- tables ---


def test_rows_gains_and_gap(tmp_path: Path) -> None:
    table = table_of(tmp_path, pairs({1: 1.0}))
    assert [r.method for r in table.rows] == ["teacher", "plain", "PD", "BOOT"]
    assert [row(table, m).rank for m in ("plain", "PD", "BOOT")] == [3, 1, 2]
    mean = {m: np.mean(v) for m, v in FD.items()}
    for method in ("PD", "BOOT"):
        found = row(table, method)
        assert found.gain.difference.mean == pytest.approx(mean["plain"] - mean[method])
        assert found.gap_closed == pytest.approx((mean["plain"] - mean[method]) / (mean["plain"] - TEACHER))
    said = to_markdown(table)
    assert "| FD-digits ↓ | gain over plain |" in said
    assert "| 29.67 ± 3.79 | +2170.33 ± " in said
    assert "Gain: by how much FD-digits is lower, paired over shared seeds" in said
    assert "Gain: by how much FD-digits is lower" in printed(render, table)


def test_ablations_gain_where_lower(tmp_path: Path) -> None:
    made = pairs({1: 1.0})
    made += [generated(Variant("step", 80).method("BOOT"), s, 50.0 + s) for s in range(3)]
    table = table_of(tmp_path, made)
    (ablation,) = table.ablations
    point = next(p for p in ablation.points if not p.is_base)
    assert point.over_plain is not None
    assert point.over_plain.mean == pytest.approx(2200.0 - 51.0)
    assert point.over_base is not None
    assert point.over_base.mean == pytest.approx(np.mean(FD["BOOT"]) - 51.0)
    assert "Gains: by how much it is lower, paired" in " ".join(printed(render, table).split())


def test_comparison_is_a_difference_and_says_which_side_it_is_for(tmp_path: Path) -> None:
    group = load_results(write_all(tmp_path, pairs({1: 1.0}))).groups[0]
    found = compare_methods(group, "PD", "BOOT")
    assert found.metrics["FD-digits"].paired.difference.mean < 0
    said = printed(render_comparison, found)
    assert "PD − BOOT" in said
    assert "FD-digits: lower is better, so less than 0 is for PD." in said


# --- curves by network calls ---


def test_pairs_of_several_calls_make_one_curve(tmp_path: Path) -> None:
    (found,) = build_curves(load_results(write_all(tmp_path, pairs())))
    assert (found.name, found.kind, found.axis) == ("diffusion/unet", "calls", "network calls an image")
    assert (found.teacher, found.teacher_calls, found.xs) == (TEACHER, 100.0, [1, 2, 4])
    curves = {c.method: c for c in found.curves}
    assert list(curves) == ["plain", "BOOT", "PD"]
    for point in curves["PD"].points:
        assert point.estimate.mean == pytest.approx(STEPS[point.x] * np.mean(FD["PD"]))
        assert point.over_plain is not None
        gain = point.over_plain.paired.difference.mean
        assert gain == pytest.approx(STEPS[point.x] * np.mean(np.subtract(FD["plain"], FD["PD"])))
    said = printed(render_curves, found)
    assert "FD-digits ↓ by network calls an image" in said
    assert "teacher, 100 calls: 6.00" in said
    assert "at one number of network calls, not over the numbers of network calls" in " ".join(said.split())


def test_pairs_of_equal_or_mixed_calls_make_none(tmp_path: Path) -> None:
    equal = pairs({1: 1.0}) + [generated(m, s, 9.0, pair="other") for m in ("plain", "PD") for s in range(3)]
    assert build_curves(load_results(write_all(tmp_path / "equal", equal))) == []
    mixed = pairs({1: 1.0}) + [
        generated(m, s, 9.0, calls=calls, pair="other") for m, calls in (("plain", 2.0), ("PD", 3.0)) for s in range(3)
    ]
    assert build_curves(load_results(write_all(tmp_path / "mixed", mixed))) == []
    assert curves_of(load_results(write_all(tmp_path / "both", pairs())), ["diffusion"], pair="unet-2step")


# --- verify ---


@pytest.mark.parametrize("value", [0.02, 2000.0])
def test_distance_is_judged_on_its_own_scale(tmp_path: Path, value: float) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"weights")
    weights = {hashlib.sha256(b"weights").hexdigest(): path}
    record = generated("PD", 0, value, student_sha256=next(iter(weights)))
    near, far = ({"FD-digits": value * by} for by in (1.0005, 1.005))
    assert verify_record(record, lambda config, file: near, weights).verdict == "holds"
    assert verify_record(record, lambda config, file: far, weights).off == ("FD-digits",)


# --- the page ---


def test_page_turns_its_plots_and_sorts_by_better(tmp_path: Path) -> None:
    index = build_site(write_all(tmp_path / "results", pairs()), tmp_path / "site")
    text = text_of(index, "diffusion")
    views = views_of(tmp_path / "results")
    first = views["diffusion-unet-1step-v1"]["plot"]
    assert first["higher"] is False
    assert {r["method"]: r["calls"] for r in first["rows"]} == {"teacher": 100.0, "plain": 1.0, "PD": 1.0, "BOOT": 1.0}
    (shown,) = views["diffusion-unet-1step-v1"]["across"]
    across = shown["plot"]
    assert (across["lower"], across["log"], across["teacher_title"]) == (True, False, "teacher, 100 calls")
    assert text.count('data-plot="calls"') == 3
    assert text.count("the axis is turned, so up is better") == 7  # latency and calls of each pair, and the curve
    assert text.count("the axis is turned, so right is better") == 3
    heads = re.findall(r'data-first="(\w+)"[^>]*><button type="button">([^<]+)</button>', text)
    orders = {name: order for order, name in heads}
    assert (orders["gain"], orders["FD-digits ↓"]) == ("descending", "ascending")
    assert "by how much FD-digits is lower than that of the plain student" in text
    numbers = (index.parent / "numbers.html").read_text(encoding="utf-8")
    assert "less than 5 % lower than the plain student" in numbers
    assert ">+1972.00<" in text  # of seed 0, in the popover: 2000 − 28


def test_other_tasks_read_as_before(tmp_path: Path) -> None:
    made = [fabricate(m, s) for m in ("plain", "KD") for s in range(2)]
    index = build_site(write_all(tmp_path / "results", made), tmp_path / "site")
    text = text_of(index) + (index.parent / "numbers.html").read_text(encoding="utf-8")
    assert "the axis is turned" not in text
    assert "whichever way the metric goes" not in text
    assert "blank where it is less than 0.5 points better than the plain student." in text
    assert 'data-plot="calls"' not in text


# --- where runs start ---


def started(method: str, start: str, /, **link: Any) -> RunRecord:
    """A run of one network that starts from some weights; of a method with a link."""
    links = [] if method == "plain" else [dict(type="PD", **link)]
    config = dict(model=dict(members={}, links=links), s=method)
    return generated(method, 0, 5.0, config=config, initial_hash=start * 64)


def test_methods_that_copy_their_teacher_start_alike_and_are_marked(tmp_path: Path) -> None:
    own, copied, other = "a", "b", "c"
    made = [started("plain", own), started("PD", copied), started("DMD", copied), started("Self", own, start="own")]
    table = table_of(tmp_path / "good", [*made, started("Off", own, weight=0.0)])
    assert {r.method: r.marks for r in table.rows} == {"plain": "", "PD": "§", "DMD": "§", "Self": "", "Off": ""}
    assert "§ Starts from the teacher's weights, the plain student from its own: DMD, PD." in to_markdown(table)
    bads = started("CD", other), started("CD", copied, start="own"), started("CD", own, weight=2.0)
    for place, bad in enumerate(bads):
        with pytest.raises(MixedRecords, match="started from different weights"):
            load_results(write_all(tmp_path / str(place), [*made, bad]))


def test_other_tasks_have_one_start(tmp_path: Path) -> None:
    made = [fabricate("plain", 0), fabricate("KD", 0, initial_hash="b" * 64, model=dict(members={}, links=[dict(a=1)]))]
    with pytest.raises(MixedRecords, match="started from different weights"):
        load_results(write_all(tmp_path, made))
