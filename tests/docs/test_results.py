"""The committed records are what the suites would make today, and the README's tables are made from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from limbeck.engine.suite import load_suite, plan, state
from limbeck.leaderboard import build_tables, load_results, update_markdown

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "suite",
    ["demo", "fashion-mnist", "cifar10-jpeg-cross", "ensemble", "flowers5", "search", "ablation", "camvid", "bccd"],
)
def test_every_run_of_a_suite_has_a_current_record(suite):
    states = {job.id: state(job, ROOT / "results")[0] for job in plan(load_suite(suite))}
    assert set(states.values()) == {"done"}, {i: s for i, s in states.items() if s != "done"}


@pytest.mark.parametrize(
    "page", ["README.md", "docs/vision-results.md", "docs/segmentation-results.md", "docs/detection-results.md"]
)
def test_tables_in_pages_are_what_the_records_say(page):
    assert not update_markdown(ROOT / page, build_tables(load_results(ROOT / "results")), check=True)


def test_results_hold_records_and_nothing_else():
    files = [p for p in (ROOT / "results").rglob("*") if p.is_file()]
    assert files
    assert all(p.suffix == ".json" and not p.name.endswith(".failed.json") for p in files)


def test_records_name_no_folder_of_a_machine():
    from limbeck.engine.record import iter_records

    def texts(value: object) -> list[str]:
        if isinstance(value, dict):
            return [t for v in value.values() for t in texts(v)]
        if isinstance(value, list):
            return [t for v in value for t in texts(v)]
        return [value] if isinstance(value, str) else []

    for path, record in iter_records(ROOT / "results"):
        assert not [t for t in texts(record.config) if t.startswith("/")], path
