"""Two methods over the pairs of a task: figures against SciPy, and words that claim no more than these."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from rich.console import Console

from limbeck.errors import ConfigError, UnknownName
from limbeck.leaderboard.compare_task import TaskComparison, compare_task, task_comparison_json
from limbeck.leaderboard.render_tasks import render_task_comparison
from limbeck.leaderboard.store import load_results
from limbeck.leaderboard.table import Table, build_tables
from tests.leaderboard.fabricate import fabricate, write_all

SEEDS = [0.0, 0.3, -0.2]


def made(folder: Path, differences: list[float], noise: float = 0.1, lower: bool = False) -> list[Table]:
    """Pairs where DKD is better than KD by so much, with a spread that is known."""
    for index, difference in enumerate(differences):
        for seed, shift in enumerate(SEEDS):
            values = {"plain": 70.0, "KD": 72.0 + shift}
            gain = difference + noise * (seed - 1)
            values["DKD"] = values["KD"] + (-gain if lower else gain)
            for method, value in values.items():
                changes = dict(metrics={"top1": value}, pair=f"pair{index}", higher_is_better=not lower)
                write_all(folder, [fabricate(method, seed, **changes)])
    return build_tables(load_results(folder))


@pytest.mark.parametrize("lower", [False, True])
def test_figures_agree_with_scipy(tmp_path: Path, lower: bool) -> None:
    differences = [1.0, 2.0, -1.5, 0.03, 3.0, 0.75, 1.25]
    found = compare_task(made(tmp_path, differences, lower=lower), "dkd", "KD")
    assert (found.a, found.b) == ("DKD", "KD")
    assert [p.paired.difference.mean for p in found.pairs] == pytest.approx(differences)
    raw = [scipy.stats.ttest_1samp([d - 0.1, d, d + 0.1], 0).pvalue for d in differences]
    assert [p.paired.p for p in found.pairs] == pytest.approx(raw)
    order = np.argsort(raw)
    holm = np.empty(7)
    holm[order] = np.minimum(1, np.maximum.accumulate((7 - np.arange(7)) * np.asarray(raw)[order]))
    assert [p.p for p in found.pairs] == pytest.approx(holm.tolist())
    expected = ["not told apart" if p >= 0.05 else "better" if d > 0 else "worse" for p, d in zip(holm, differences)]
    assert [p.verdict for p in found.pairs] == expected
    assert found.wilcoxon == pytest.approx(scipy.stats.wilcoxon(differences).pvalue)
    interval = scipy.stats.ttest_1samp(differences, 0).confidence_interval()
    assert (found.over.low, found.over.high) == pytest.approx((interval.low, interval.high))


def test_words_of_a_difference_that_is_real(tmp_path: Path) -> None:
    found = compare_task(made(tmp_path, [1.0, 2.0, 1.5, 2.5, 3.0, 0.75], noise=0.01), "DKD", "KD")
    assert found.summary == (
        "DKD is better than KD in 6 of 6 pairs, worse in none; over pairs +1.79 points (95 % interval +0.88 to +2.71); "
        "Wilcoxon signed-rank p = 0.031."
    )
    assert found.conclusion == "The difference is real over these pairs: DKD is better than KD."
    turned = compare_task(made(tmp_path, []), "KD", "DKD")
    assert "worse in 6" in turned.summary
    assert turned.conclusion == found.conclusion


def test_few_pairs_are_never_called_real(tmp_path: Path) -> None:
    found = compare_task(made(tmp_path, [5.0, 6.0, 7.0, 8.0, 9.0]), "DKD", "KD")
    assert "With 5 pairs that differ the signed-rank test cannot go below p = 0.062" in found.conclusion
    assert found.wilcoxon is not None
    assert found.wilcoxon > 0.05
    one = compare_task(made(tmp_path / "one", [5.0]), "DKD", "KD")
    assert one.conclusion == "One pair says nothing about other pairs."
    assert one.summary.endswith("in 1 of 1 pair, worse in none; the difference is +5.00 points.")


def test_no_difference_shown_is_not_none(tmp_path: Path) -> None:
    found = compare_task(made(tmp_path, [1.0, -1.0, 0.5, -0.6, 2.0, -2.1]), "DKD", "KD")
    assert "does not mean that there is none" in found.conclusion
    equal = compare_task(made(tmp_path / "same", [0.0, 0.0], noise=0.0), "DKD", "KD")
    assert (equal.wilcoxon, equal.conclusion) == (None, "The two are equal in every pair.")
    assert {p.verdict for p in equal.pairs} == {"not told apart"}


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    made(tmp_path, [1.0, 2.0])
    write_all(tmp_path, [fabricate(m, 0, pair="single") for m in ("plain", "KD", "DKD")])
    write_all(tmp_path, [fabricate(m, 0, pair="without") for m in ("plain", "KD")])
    write_all(tmp_path, [fabricate(m, 0, pair="flagged") for m in ("plain", "KD")])
    write_all(tmp_path, [fabricate("DKD", 0, pair="flagged", status="partial")])
    write_all(tmp_path, [fabricate(m, s, pair="apart") for m, s in (("plain", 0), ("plain", 1), ("KD", 0), ("DKD", 1))])
    found = compare_task(build_tables(load_results(tmp_path)), "DKD", "KD")
    assert dict(found.left_out) == {
        "toy/apart": "DKD and KD share no seed",
        "toy/flagged": "DKD is partial",
        "toy/without": "has no DKD",
    }
    assert "not tested in 1 (a single seed)" in found.summary
    console = Console(file=io.StringIO(), width=200)
    render_task_comparison(found, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Left out: toy/apart DKD and KD share no seed; toy/flagged DKD is partial; toy/without has no DKD." in text
    assert found.summary in text


def test_json_has_the_sentences(tmp_path: Path) -> None:
    found: TaskComparison = compare_task(made(tmp_path, [1.0, 2.0]), "DKD", "plain")
    raw = task_comparison_json(found)
    assert (raw["summary"], raw["conclusion"]) == (found.summary, found.conclusion)
    assert raw["pairs"][0]["paired"]["seeds"] == (0, 1, 2)


def test_refusals(tmp_path: Path) -> None:
    tables = made(tmp_path, [1.0, 2.0])
    with pytest.raises(UnknownName, match="did you mean 'DKD'"):
        compare_task(tables, "DKKD", "KD")
    with pytest.raises(ConfigError, match="with itself"):
        compare_task(tables, "KD", "kd")
    low = made(tmp_path / "low", [1.0], lower=True)
    with pytest.raises(ConfigError, match="several kinds"):
        compare_task([*tables, *low], "DKD", "KD")
