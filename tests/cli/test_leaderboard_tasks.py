"""`limbeck leaderboard across`, `pareto`, and `compare` with --task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from limbeck.errors import ConfigError, UnknownName
from tests.cli.test_leaderboard import call
from tests.leaderboard.fabricate import suite, write_all

TASK = "image-classification"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    made = [r for pair in ("a-b", "c-d", "e-f") for r in suite(("KD", "DKD"), range(2), pair=pair)]
    return write_all(tmp_path / "results", made)


def test_across_prints_ranks_and_writes_the_diagram(results: Path, tmp_path: Path) -> None:
    pytest.importorskip("scikit_posthocs")
    drawn = tmp_path / "diagram.svg"
    text = call("across", TASK, "--results", results, "--svg", drawn)
    assert "3 methods over 3 pairs, top-1 ↑" in text
    assert "Friedman's test over 3 pairs" in text
    assert drawn.read_text(encoding="utf-8").startswith("<svg role=")
    raw = json.loads(call("across", TASK, "--results", results, "--method", "kd", "--method", "DKD", "--json"))
    assert sorted(m["method"] for m in raw["methods"]) == ["DKD", "KD", "plain"]
    with pytest.raises(UnknownName, match="did you mean 'image-classification'"):
        call("across", "image-clasification", "--results", results)


def test_pareto_prints_the_front(results: Path) -> None:
    text = call("pareto", "toy", "--results", results, "--cost", "params")
    assert "top-1 ↑ against params" in text
    assert "●" in text
    (raw,) = json.loads(call("pareto", "toy", "--results", results, "--pair", "a-b", "--json"))
    assert raw["tables"] == ["toy/a-b"]
    with pytest.raises(UnknownName, match="pair"):
        call("pareto", "toy", "--results", results, "--pair", "a-c")
    with pytest.raises(UnknownName, match="cost"):
        call("pareto", "toy", "--results", results, "--cost", "price")


def test_compare_over_the_pairs_of_a_task(results: Path) -> None:
    text = call("compare", "DKD", "KD", "--task", TASK, "--results", results)
    assert "DKD against KD over 3 pairs" in text
    assert "cannot go below p = 0.25" in text
    raw = json.loads(call("compare", "DKD", "KD", "--task", TASK, "--results", results, "--json"))
    assert [p["name"] for p in raw["pairs"]] == ["toy/a-b", "toy/c-d", "toy/e-f"]
    with pytest.raises(ConfigError, match="two methods alone"):
        call("compare", "toy", "DKD", "KD", "--task", TASK, "--results", results)
