"""Two methods, and two folders."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from rich.console import Console

from limbeck.errors import UnknownName
from limbeck.leaderboard.checks import MixedRecords, ResultsError
from limbeck.leaderboard.compare import (
    compare_benchmark,
    compare_methods,
    comparison_json,
    render_comparison,
)
from limbeck.leaderboard.reproduce import render_reproduction, reproduce, reproduce_results
from limbeck.leaderboard.store import load_results
from tests.leaderboard.fabricate import fabricate, suite, vary, with_values, write_all

PLAIN, KD, DKD = [70.0, 71.0, 72.0], [72.0, 72.5, 74.5], [70.5, 71.5, 71.0, 99.0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_all(tmp_path / "a", with_values("plain", PLAIN) + with_values("KD", KD) + with_values("DKD", DKD))


def printed(render: object, found: object, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    render(found, console)  # type: ignore[operator]
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_compare_uses_shared_seeds(folder: Path) -> None:
    found = compare_methods(load_results(folder).groups[0], "kd", "DKD")
    top1 = found.metrics["top1"]
    reference = scipy.stats.ttest_rel(KD, DKD[:3])
    assert (found.a, found.b, top1.paired.seeds) == ("KD", "DKD", (0, 1, 2))
    assert top1.paired.difference.mean == pytest.approx(np.mean(np.subtract(KD, DKD[:3])))
    assert top1.paired.p == pytest.approx(reference.pvalue)
    assert top1.paired.difference.low == pytest.approx(reference.confidence_interval().low)
    assert (list(top1.a.values()), list(top1.b.values())) == (KD, DKD[:3])
    assert found.metrics["nll"].paired.p == 1.0


def test_compare_is_antisymmetric(folder: Path) -> None:
    group = load_results(folder).groups[0]
    one, two = compare_methods(group, "KD", "plain"), compare_methods(group, "plain", "KD")
    assert one.metrics["top1"].paired.difference.mean == -two.metrics["top1"].paired.difference.mean
    assert one.metrics["top1"].paired.p == pytest.approx(two.metrics["top1"].paired.p)


def test_compare_cost_ratios(folder: Path) -> None:
    group = load_results(folder).groups[0]
    found = compare_methods(group, "KD", "plain")
    a, b = ([r.cost.train_seconds for r in group.method(m).values()] for m in ("KD", "plain"))
    assert found.cost_ratios["train_seconds"] == pytest.approx(np.mean(a) / np.mean(b))
    assert found.cost_ratios["teacher_forwards"] is None  # the plain student asked no teacher
    assert found.cost_ratios["parameters"] == 1.0


def test_compare_refuses_unknown_and_disjoint(folder: Path) -> None:
    write_all(folder, [fabricate("plain", 8), fabricate("DIST", 8)])
    results = load_results(folder)
    with pytest.raises(UnknownName, match="did you mean 'KD'"):
        compare_methods(results.groups[0], "KDD", "plain")
    with pytest.raises(ResultsError, match="KD and DIST share no seed"):
        compare_methods(results.groups[0], "KD", "DIST")
    with pytest.raises(UnknownName, match="pair"):
        compare_benchmark(results, "toy", "KD", "plain", pair="big-smal")


def test_compare_benchmark_takes_pairs_that_have_both(folder: Path) -> None:
    write_all(folder, [fabricate("plain", 0, pair="mid-small"), fabricate("DIST", 0, pair="mid-small")])
    write_all(folder, [fabricate(m, 0, pair="other-small") for m in ("plain", "KD")])
    results = load_results(folder)
    assert [c.name for c in compare_benchmark(results, "toy", "KD", "plain")] == ["toy/big-small", "toy/other-small"]
    assert len(compare_benchmark(results, "toy", "KD", "plain", pair="other-small")) == 1
    with pytest.raises(UnknownName):
        compare_benchmark(results, "toy", "nothing", "plain")


def test_compare_renders_and_dumps(folder: Path) -> None:
    found = compare_methods(load_results(folder).groups[0], "KD", "DKD")
    text = printed(render_comparison, found)
    assert "KD − DKD" in text
    assert "+2.00" in text
    assert json.loads(json.dumps(comparison_json(found)))["metrics"]["top1"]["a"]["2"] == 74.5


def test_compare_takes_a_named_variant(folder: Path) -> None:
    write_all(folder, with_values("KD@temperature=2.0", DKD[:3]) + vary("FitNet", "taps", [[("layer1", "layer1")]]))
    results = load_results(folder)
    (found,) = compare_benchmark(results, "toy", "KD@temperature=2", "kd")
    assert (found.a, found.b) == ("KD@temperature=2.0", "KD")
    assert found.metrics["top1"].paired.difference.mean == pytest.approx(np.mean(np.subtract(DKD[:3], KD)))
    assert [a.name for a in found.ablations] == ["FitNet@taps", "KD@temperature"]
    text = printed(render_comparison, found)
    assert "KD: temperature" in text
    assert "over KD" in text
    assert "Ablations" not in printed(lambda f, console: render_comparison(f, console, ablations=False), found)
    assert len(comparison_json(found)["ablations"]) == 2
    assert "ablations" not in comparison_json(found, ablations=False)


def test_compare_of_two_variants_fits_80_columns(folder: Path) -> None:
    write_all(folder, vary("KD", "temperature", [2.0]) + vary("FitNet", "taps", [[("layer1", "layer1")]]))
    group = load_results(folder).groups[0]
    found = compare_methods(group, "KD@temperature=2.0", "FitNet@taps=[('layer1', 'layer1')]")
    text = printed(render_comparison, found, width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert f"{found.metrics['top1'].paired.difference.mean:+.2f} ±".replace("-", "−") in text


def test_compare_takes_teachers_by_name(folder: Path) -> None:
    write_all(folder, with_values("teacher", [76.0]) + with_values("teacher-vit", [80.0]))
    found = compare_methods(load_results(folder).groups[0], "teacher-vit", "teacher")
    assert found.metrics["top1"].paired.difference.mean == 4.0


def test_reproduce_looks_for_variants_and_teachers_too(tmp_path: Path, folder: Path) -> None:
    write_all(folder, vary("KD", "temperature", [2.0]) + with_values("teacher-vit", [80.0]))
    assert verdicts(folder, folder) == dict.fromkeys(
        ("teacher-vit", "plain", "KD", "DKD", "KD@temperature=2.0"), "identical"
    )
    ours = write_all(tmp_path / "ours", with_values("plain", PLAIN))
    assert verdicts(ours, folder)["KD@temperature=2.0"] == "missing"
    assert reproduce_results(folder, ours).only_ours == tuple(
        f"toy/big-small/{m}" for m in ("dkd", "kd", "kd@temperature=2.0", "teacher-vit")
    )


def verdicts(ours: Path, theirs: Path, **options: object) -> dict[str, str]:
    found = reproduce_results(ours, theirs, **options)  # type: ignore[arg-type]
    return {c.method: c.verdict for c in found.cells}


def test_reproduce_identical(tmp_path: Path) -> None:
    ours = write_all(tmp_path / "ours", suite(("KD",), range(2)))
    theirs = write_all(tmp_path / "theirs", suite(("KD",), range(5)))
    found = reproduce_results(ours, theirs)
    assert {c.method: c.verdict for c in found.cells} == dict.fromkeys(("teacher", "plain", "KD"), "identical")
    assert {c.method: (c.identical, c.shared) for c in found.cells}["KD"] == (2, (0, 1))
    assert found.holds


def test_reproduce_each_verdict(tmp_path: Path, folder: Path) -> None:
    ours = with_values("plain", PLAIN) + with_values("KD", [72.0, 72.6, 74.5]) + with_values("DIST", [1.0, 2.0])
    assert verdicts(write_all(tmp_path / "ours", ours), folder) == {
        "plain": "identical",
        "KD": "within interval",
        "DKD": "missing",
    }
    found = reproduce_results(tmp_path / "ours", folder)
    assert found.only_ours == ("toy/big-small/dist",)
    assert not found.holds
    write_all(tmp_path / "ours", with_values("KD", [50.0, 50.1, 50.2]))
    assert verdicts(tmp_path / "ours", folder)["KD"] == "differs"
    text = printed(render_reproduction, found)
    assert "1 identical, 1 within interval, 1 missing" in text


def test_reproduce_one_other_metric_breaks_identity(tmp_path: Path, folder: Path) -> None:
    ours = with_values("plain", PLAIN)
    ours[1] = fabricate("plain", 1, metrics={"top1": PLAIN[1], "nll": 1.0000001})
    found = reproduce_results(write_all(tmp_path / "ours", ours), folder, methods=["plain"])
    assert [(c.identical, c.verdict) for c in found.cells] == [(2, "within interval")]
    assert found.holds


def test_reproduce_single_seed_counts_as_its_value(tmp_path: Path) -> None:
    theirs = write_all(tmp_path / "theirs", with_values("plain", PLAIN))
    inside = write_all(tmp_path / "inside", [fabricate("plain", 7, metrics={"top1": 71.5})])
    outside = write_all(tmp_path / "outside", [fabricate("plain", 7, metrics={"top1": 90.0})])
    assert verdicts(inside, theirs) == {"plain": "within interval"}
    assert verdicts(outside, theirs) == {"plain": "differs"}


def test_reproduce_notes_other_config_and_version(tmp_path: Path, folder: Path) -> None:
    config = {"fixture": True, "changed": True}
    ours = with_values("plain", PLAIN, config=config, environment__limbeck="9.9")
    cell = reproduce_results(write_all(tmp_path / "ours", ours), folder).cells[0]
    assert cell.notes == ("other config", "limbeck 0.0-fixture and 9.9")


def test_reproduce_looks_at_our_benchmarks_only(tmp_path: Path, folder: Path) -> None:
    write_all(folder, suite(("KD",), range(2), benchmark="other"))
    ours = write_all(tmp_path / "ours", with_values("plain", PLAIN))
    assert {c.benchmark for c in reproduce_results(ours, folder).cells} == {"toy"}


def test_reproduce_refuses_other_data_and_other_benchmarks(tmp_path: Path, folder: Path) -> None:
    other = load_results(write_all(tmp_path / "data", with_values("plain", PLAIN, data__content_hash="e" * 64)))
    with pytest.raises(MixedRecords, match="different data"):
        reproduce(other, load_results(folder))
    alone = load_results(write_all(tmp_path / "alone", with_values("plain", PLAIN, benchmark="alone")))
    with pytest.raises(ResultsError, match="share no benchmark"):
        reproduce(alone, load_results(folder))
