"""Columns say what the records say, one by one: on every committed record and on made-up groups of every odd kind."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from limbeck.leaderboard.store import Results, load_results
from limbeck.leaderboard.table import build_tables, environments
from tests.leaderboard.fabricate import fabricate, linked, suite, vary, with_values, write_all
from tests.leaderboard.reference import reference_of, rows_of, warnings_of

COMMITTED = Path(__file__).parents[2] / "results"


def close(found: Any, expected: Any, where: str = "") -> None:
    """Equal, floats to 1e-9 relative and 1e-12 of nothing."""
    if isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key, value in expected.items():
            close(found[key], value, f"{where}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for index, (a, b) in enumerate(zip(found, expected)):
            close(a, b, f"{where}[{index}]")
    elif isinstance(expected, float):
        assert type(found) is float, where
        assert math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-12), f"{where}: {found!r} and {expected!r}"
    else:
        assert found == expected, f"{where}: {found!r} and {expected!r}"
        assert type(found) is type(expected), where


def same_as_one_by_one(results: Results) -> None:
    for table, group in zip(build_tables(results), results.groups):
        close([asdict(r) for r in table.rows], [asdict(r) for r in rows_of(group)], table.name)
        assert table.reference == group.reference == reference_of(group)
        assert table.environments == environments(group.records)
        sample = group.sample
        assert (table.primary, table.data) == (sample.primary_metric, sample.data.model_dump())
        assert (table.task, table.selection) == (sample.task, sample.recipe.selection)
        if not group.failures:
            assert list(table.warnings) == warnings_of(group)


def test_committed_records() -> None:
    if not COMMITTED.is_dir():
        pytest.skip("no committed records beside the tests")
    results = load_results(COMMITTED)
    assert len(results.index) > 500
    same_as_one_by_one(results)


def test_odd_groups(tmp_path: Path) -> None:
    write_all(tmp_path, [*suite(seeds=range(4)), *vary("KD", "temperature", [2.0, 8.0])])
    write_all(tmp_path, [fabricate("KD", 9, status="unreliable"), fabricate("DKD", 8, status="partial")])
    write_all(tmp_path, suite(("KD",), [3], pair="one-seed"))
    alone = dict(pair="no-teacher", higher_is_better=False)
    write_all(tmp_path, [*suite(("KD", "DKD"), range(3), benchmark="low", **alone)][1:])
    # equal up to rounding noise; zero; one metric of one seed alone
    write_all(tmp_path, with_values("plain", [1e6, 1e6, 1e6], benchmark="same"))
    write_all(tmp_path, with_values("KD", [1e6 + 1e-6, 1e6, 1e6], benchmark="same"))
    write_all(tmp_path, with_values("DKD", [1e6 + 2, 1e6 + 2, 1e6 + 2 + 1e-9], benchmark="same"))
    write_all(tmp_path, [fabricate("AT", 0, benchmark="same", metrics={"top1": 0.0, "extra": 3.0})])
    same_as_one_by_one(load_results(tmp_path))


def test_teachers_of_several_pairs(tmp_path: Path) -> None:
    first, second = fabricate("teacher", 0, pair="big"), fabricate("teacher-vit", 0, pair="vit")
    model = linked(dict(type="E", teacher=["teacher", "vit"]), teacher=first.id, vit=second.id)
    named = [fabricate("E", s, model=model, teacher_record=first.id) for s in range(2)]
    helped = [fabricate("KD", s, teacher_record=named[0].id) for s in range(2)]
    other = fabricate("teacher", 0, benchmark="other")
    far = [fabricate("DKD", s, teacher_record=other.id) for s in range(2)]
    plain = [fabricate("plain", s, assumption="ours") for s in range(2)]
    results = load_results(write_all(tmp_path, [first, second, other, *named, *helped, *far, *plain]))
    assert [g.pair for g in results] == ["big-small"]
    same_as_one_by_one(results)
