"""Methods over several pairs: gains, ranks, Friedman, Nemenyi, cliques, what is left out, and the diagram."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import scipy.stats
from rich.console import Console

from limbeck.engine.record import RunRecord
from limbeck.errors import ConfigError, ExtraMissing, UnknownName
from limbeck.leaderboard.across import Across, across, across_json, across_svg
from limbeck.leaderboard.render_tasks import render_across
from limbeck.leaderboard.store import Results, load_results
from limbeck.leaderboard.table import Table
from limbeck.leaderboard.tasks import tables_of_task
from tests.leaderboard.fabricate import fabricate, write_all

TASK = "image-classification"
# gains over the plain student by pair; KD and DKD are equal in the last
GAINS: dict[str, list[float]] = {
    "KD": [1.0, 2.0, 1.5, 0.5, 2.0, 1.0],
    "DKD": [1.5, 2.5, 1.0, 1.0, 2.5, 1.0],
    "AT": [-1.0, -0.5, -2.0, 0.25, -1.0, -0.5],
}


def records(gains: dict[str, list[float]] = GAINS, lower: bool = False) -> list[RunRecord]:
    made = []
    count = len(next(iter(gains.values())))
    for index in range(count):
        for method, values in {"plain": [0.0] * count, **gains}.items():
            for seed in range(2):
                value = 60.0 + 5 * index + 0.25 * seed + (-1 if lower else 1) * values[index]
                changes = dict(metrics={"top1": value}, pair=f"pair{index}", higher_is_better=not lower)
                made.append(fabricate(method, seed, **changes))
    return made


def tables(folder: Path, made: list[RunRecord]) -> list[Table]:
    return tables_of_task(load_results(write_all(folder, made)), TASK)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return load_results(write_all(tmp_path, records()))


def printed(found: Across) -> str:
    console = Console(file=io.StringIO(), width=200)
    render_across(found, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("lower", [False, True])
def test_gains_and_ranks_count_each_pair_once(tmp_path: Path, lower: bool) -> None:
    found = across(tables(tmp_path, records(lower=lower)))
    by_name = {m.method: m for m in found.methods}
    assert set(by_name) == {"plain", "KD", "DKD", "AT"}
    for name, gains in GAINS.items():
        assert by_name[name].gains == pytest.approx(gains)
        assert by_name[name].gain.mean == pytest.approx(np.mean(gains))
        half = scipy.stats.t.ppf(0.975, 5) * np.std(gains, ddof=1) / np.sqrt(6)
        assert by_name[name].gain.half == pytest.approx(half)
    # by hand: DKD is first but in pair 2, and shares 1.5 in the last; AT beats plain once
    assert by_name["DKD"].rank == pytest.approx((1 + 1 + 2 + 1 + 1 + 1.5) / 6)
    assert by_name["KD"].rank == pytest.approx((2 + 2 + 1 + 2 + 2 + 1.5) / 6)
    assert by_name["plain"].rank == pytest.approx((3 + 3 + 3 + 4 + 3 + 3) / 6)
    assert by_name["AT"].rank == pytest.approx((4 + 4 + 4 + 3 + 4 + 4) / 6)
    assert [m.method for m in found.methods] == ["DKD", "KD", "plain", "AT"]
    assert by_name["AT"].ahead == 1


def test_tests_agree_with_demsar_by_hand(results: Results) -> None:
    pytest.importorskip("scikit_posthocs")
    found = across(tables_of_task(results, TASK))
    n, k = 6, 4
    ranks = np.array([m.rank for m in found.methods])
    raw = 12 * n / (k * (k + 1)) * (np.sum(ranks**2) - k * (k + 1) ** 2 / 4)
    ties = 1 - (2**3 - 2) / (n * (k**3 - k))  # one tie of two
    assert found.statistic == pytest.approx(raw / ties)
    assert found.p == pytest.approx(scipy.stats.chi2.sf(raw / ties, k - 1))
    assert found.critical_difference == pytest.approx(2.569 * np.sqrt(k * (k + 1) / (6 * n)), rel=1e-3)  # his table 5a
    for i in range(k):
        for j in range(k):
            assert (found.nemenyi[i][j] < 0.05) == (abs(ranks[i] - ranks[j]) > (found.critical_difference or 0))
    assert found.told_apart
    assert found.cliques == (("DKD", "KD"), ("KD", "plain"), ("plain", "AT"))  # 1.917 is above 1.915


def test_nothing_is_told_apart_when_friedman_does_not(tmp_path: Path) -> None:
    pytest.importorskip("scikit_posthocs")
    found = across(tables(tmp_path, records({"KD": [1.0, -1.0], "DKD": [-1.0, 1.0]})))
    assert not found.told_apart
    assert len(found.cliques) == 1
    assert set(found.cliques[0]) == {"plain", "KD", "DKD"}
    assert "the methods are not told apart" in printed(found)


def test_equal_methods_leave_no_statistic_undefined(tmp_path: Path) -> None:
    found = across(tables(tmp_path, records({"KD": [0.0, 0.0], "DKD": [0.0, 0.0]})))
    assert (found.statistic, found.p) == (0.0, 1.0)
    assert {m.rank for m in found.methods} == {2.0}


def test_only_whole_pairs_enter_and_the_others_are_said(tmp_path: Path) -> None:
    made = [r for r in records() if (r.method, r.pair) != ("DKD", "pair1")]
    made = [r for r in made if (r.method, r.pair, r.seed) != ("KD", "pair2", 1)]
    made.append(fabricate("KD", 1, pair="pair2", status="unreliable", metrics={"top1": 71.5}))
    made += [fabricate("FitNet", s, pair="pair0") for s in range(2)]
    found = across(tables(tmp_path, made), ["dkd", "KD"])
    assert found.chosen
    assert found.pairs == ("toy/pair0", "toy/pair3", "toy/pair4", "toy/pair5")
    assert dict(found.left_out) == {"toy/pair1": "has no DKD", "toy/pair2": "KD is unreliable"}
    assert "Left out: toy/pair1 has no DKD; toy/pair2 KD is unreliable." in printed(found)
    assert "FitNet" not in {m.method for m in across(tables(tmp_path, [])).methods}  # it would leave one pair


def test_kinds_of_metric_are_never_mixed(tmp_path: Path, results: Results) -> None:
    other = [
        fabricate(m, s, benchmark="other", primary_metric="nll", higher_is_better=False)
        for m in ("plain", "KD", "DKD")
        for s in range(2)
    ]
    both = load_results(write_all(tmp_path, other))
    with pytest.raises(ConfigError, match=r"nll \(lower is better\) of other; top1 \(higher is better\) of toy"):
        tables_of_task(both, TASK)
    assert {t.benchmark for t in tables_of_task(both, TASK, metric="top1")} == {"toy"}
    with pytest.raises(UnknownName, match="did you mean 'top1'"):
        tables_of_task(both, TASK, metric="top-1")
    with pytest.raises(ConfigError, match="several kinds"):
        across([*tables_of_task(both, TASK, metric="top1"), *tables_of_task(both, TASK, metric="nll")])


def test_what_cannot_be_compared_is_refused(results: Results) -> None:
    found = tables_of_task(results, TASK)
    with pytest.raises(UnknownName, match="did you mean 'DKD'"):
        across(found, ["DKKD"])
    with pytest.raises(UnknownName, match="image-classification"):
        tables_of_task(results, "image-clasification")
    with pytest.raises(ConfigError, match="1 of 1 pairs have KD"):
        across(found[:1], ["KD"])
    with pytest.raises(ConfigError, match="beside the plain student"):
        across(found, ["plain"])


def test_two_methods_have_no_friedman_test(results: Results) -> None:
    found = across(tables_of_task(results, TASK), ["KD"])
    assert (found.p, found.critical_difference, found.cliques) == (None, None, (("KD", "plain"),))
    assert "needs three methods" in printed(found)
    with pytest.raises(ConfigError, match="three methods"):
        across_svg(found)


def test_missing_library_is_one_sentence(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scikit_posthocs", None)
    with pytest.raises(ExtraMissing, match=r"limbeck\[stats\]"):
        across(tables_of_task(results, TASK))


def test_diagram_is_an_svg_element_with_every_name(tmp_path: Path) -> None:
    pytest.importorskip("scikit_posthocs")
    made = records({**GAINS, "<b>$x$</b>": [3.0] * 6})
    found = across(tables(tmp_path, made))
    drawn = across_svg(found)
    root = ElementTree.fromstring(drawn.replace("xlink:", ""))
    text = "".join(root.itertext())
    for method in found.methods:
        assert f"{method.method} ({method.rank:.2f})" in text or f"({method.rank:.2f}) {method.method}" in text
    assert root.get("role") == "img"
    assert "Not told apart" in str(root.get("aria-label"))
    assert "<b>" not in drawn
    assert "currentColor" in drawn  # readable in dark mode
    assert "#000000" not in drawn
    assert across_svg(found) == drawn
    assert across_json(found)["methods"][0]["method"] == "<b>$x$</b>"
