"""Fronts: who is on them, by brute force; ties, lower is better, flags, what was not measured."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from limbeck.errors import ConfigError, UnknownName
from limbeck.leaderboard.pareto import Pareto, on_front, pareto, pareto_json
from limbeck.leaderboard.render_tasks import render_pareto
from limbeck.leaderboard.store import load_results
from limbeck.leaderboard.table import Table, build_tables
from tests.leaderboard.fabricate import fabricate, write_all

POINTS = {"plain": (70.0, 10), "KD": (72.0, 10), "DKD": (72.0, 10), "Wide": (75.0, 30), "Bad": (71.0, 20)}


def made(folder: Path, points: dict[str, tuple[float, int]] = POINTS, **changes: Any) -> list[Table]:
    for method, (value, size) in points.items():
        one = dict(metrics={"top1": value}, student__parameters=size, student__flops=100 * size)
        one |= dict(cost__student_latency_ms=size / 10, initial_hash=f"{size:064d}")
        write_all(folder, [fabricate(method, 0, **one, **changes)])
    return build_tables(load_results(folder))


def named(found: Pareto) -> list[str]:
    return [p.method for p in found.front]


@pytest.mark.parametrize("cost", ["latency", "flops", "params"])
def test_front_holds_ties_and_leaves_out_what_is_beaten(tmp_path: Path, cost: Any) -> None:
    found = pareto(made(tmp_path), cost)
    assert named(found) == ["DKD", "KD", "Wide"]
    assert [p.method for p in found.points] == ["DKD", "KD", "plain", "Bad", "Wide"]
    assert [p.cost for p in found.points][-1] == {"latency": 3.0, "flops": 3000, "params": 30}[cost]


def test_lower_is_better(tmp_path: Path) -> None:
    found = pareto(made(tmp_path, higher_is_better=False), "params")
    assert named(found) == ["plain"]
    better = {**POINTS, "Wide": (69.0, 30)}
    assert named(pareto(made(tmp_path, better, higher_is_better=False), "params")) == ["plain", "Wide"]


def test_equal_value_at_more_cost_is_beaten(tmp_path: Path) -> None:
    assert named(pareto(made(tmp_path, {"plain": (70.0, 10), "KD": (70.0, 11)}), "params")) == ["plain"]


def test_front_is_that_of_brute_force() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        points = [(float(c), float(g)) for c, g in rng.integers(0, 6, (int(rng.integers(0, 12)), 2))]
        beaten = [any(c <= a and g >= b and (c, g) != (a, b) for c, g in points) for a, b in points]
        assert on_front(points) == [not b for b in beaten]


def test_flagged_and_unmeasured_rows(tmp_path: Path) -> None:
    made(tmp_path)
    write_all(tmp_path, [fabricate("Best", 0, status="unreliable", metrics={"top1": 99.0})])
    write_all(tmp_path, [fabricate("Slow", 0, cost__student_latency_ms=None)])
    found = pareto(build_tables(load_results(tmp_path)))
    assert named(found) == ["DKD", "KD", "Wide"]
    assert [p.flags for p in found.points if p.method == "Best"] == [("unreliable",)]
    assert found.without == ("Slow of big-small",)
    console = Console(file=io.StringIO(), width=120)
    render_pareto(found, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Not measured: Slow of big-small." in text
    assert text.count("●") == 4  # three rows and the note


def test_a_teacher_of_two_pairs_is_one_point(tmp_path: Path) -> None:
    teacher = fabricate("teacher", 0)
    write_all(tmp_path, [teacher, *(fabricate(m, 0) for m in ("plain", "KD"))])
    write_all(tmp_path, [fabricate(m, 0, pair="other", teacher_record=teacher.id) for m in ("plain", "KD")])
    found = pareto(build_tables(load_results(tmp_path)), "params")
    assert [p.method for p in found.points].count("teacher") == 1
    assert len(found.points) == 5
    assert pareto_json(found)["points"][0]["value"]["n"] == 1


def test_refusals(tmp_path: Path) -> None:
    tables = made(tmp_path)
    with pytest.raises(UnknownName, match="did you mean 'params'"):
        pareto(tables, "param")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no table"):
        pareto([])
    other = made(tmp_path / "b", benchmark="other", data__content_hash="e" * 64)
    with pytest.raises(ConfigError, match="different data"):
        pareto([*tables, *other])
    low = made(tmp_path / "c", benchmark="low", higher_is_better=False)
    with pytest.raises(ConfigError, match="several kinds"):
        pareto([*tables, *low])
