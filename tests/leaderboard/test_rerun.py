"""Rerun: which runs cells need, and what is said of each run that was made again."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from rich.console import Console
from scipy import stats

from limbeck.engine.record import record_path, write_record
from limbeck.engine.suite import Suite
from limbeck.errors import ConfigError, UnknownName
from limbeck.leaderboard.rerun import (
    Cell,
    RerunCell,
    compare_cells,
    holds,
    parse_cells,
    plan_cells,
    recorded_cost,
    render_cells,
    table_suite,
)
from tests.engine.toys import toy_suite
from tests.leaderboard.fabricate import fabricate, with_values, write_all

KD = [f"toy/big-small/kd/seed{s}" for s in range(4)]


@pytest.fixture
def toys(tmp_path: Path) -> Suite:
    return toy_suite(tmp_path)


def ids(suite: Suite, *cells: str) -> tuple[list[str], list[str]]:
    found = plan_cells(suite, parse_cells(cells))
    return [job.id.partition("toy4-toy2/")[2] for job in found.jobs], list(found.wanted)


def test_cells_are_methods_and_runs() -> None:
    assert parse_cells(["KD", "KD/0", "KD@taps=[('a/b','c')]"]) == [
        Cell("KD"),
        Cell("KD", 0),
        Cell("KD@taps=[('a/b','c')]"),
    ]
    assert parse_cells(None) == []
    for bad in ("", "/0"):
        with pytest.raises(ConfigError, match="a cell is METHOD or METHOD/SEED"):
            parse_cells([bad])


def test_a_cell_needs_its_plain_student_and_the_teacher_and_no_other_run(toys: Suite) -> None:
    needed, wanted = ids(toys, "toymatch/1")
    assert needed == ["teacher/seed0", "plain/seed1", "toymatch/seed1"]  # the suite's teacher, not one of seed 1
    assert wanted == ["toy/toy4-toy2/toymatch/seed1"]
    assert ids(toys, "teacher")[0] == ["teacher/seed0"]
    assert ids(toys, "plain/0")[0] == ["plain/seed0"]
    assert len(ids(toys)[0]) == len(ids(toys)[1]) == 7


def test_what_a_suite_does_not_have_is_named(toys: Suite) -> None:
    with pytest.raises(UnknownName, match="did you mean 'ToyMatch'"):
        ids(toys, "ToyMach")
    with pytest.raises(ConfigError, match="on the seeds 0, 1; none is 7"):
        ids(toys, "ToyMatch/7")
    with pytest.raises(UnknownName, match="toy4-toy2"):
        plan_cells(toys, [], pair="toy4-toy3")


def test_a_benchmark_and_a_pair_are_tables_with_the_runs_of_every_suite() -> None:
    whole = {job.id for job in plan_cells(table_suite("digits"), []).jobs}
    assert "digits/resnet20-resnet8/kd/seed4" in whole
    assert any("kd@temperature" in identity for identity in whole)  # of the ablation suite
    pair = plan_cells(table_suite("lidar-scenes/pointpillars64-pointpillars16"), [Cell("CWD", 0)])
    assert [job.id.split("/", 1)[1] for job in pair.jobs] == [
        "pointpillars64-pointpillars32/teacher/seed0",  # this pair takes the other's teacher
        "pointpillars64-pointpillars16/plain/seed0",
        "pointpillars64-pointpillars16/cwd/seed0",
    ]
    with pytest.raises(UnknownName, match="did you mean 'fashion-mnist'"):
        table_suite("fashion-minst")


def compared(tmp_path: Path, found: float, recorded: list[float], **options: float) -> RerunCell:
    write_all(tmp_path / "theirs", with_values("KD", recorded))
    write_all(tmp_path / "ours", with_values("KD", [found]))
    return compare_cells(KD[:1], tmp_path / "ours", tmp_path / "theirs", **options)[0]


def test_equal_in_every_metric_is_identical(tmp_path: Path) -> None:
    assert compared(tmp_path, 70.0, [70.0, 71.0]).verdict == "identical"
    metrics = {"top1": 70.0, "nll": 1.0}
    curves = dict(epochs=[1], learning_rate=[0.1], losses={"loss": [1.0]})
    write_record(tmp_path / "ours", fabricate("KD", 0, metrics=metrics, history=curves))  # older ones have no curves
    assert compare_cells(KD[:1], tmp_path / "ours", tmp_path / "theirs")[0].verdict == "identical"
    write_record(tmp_path / "ours", fabricate("KD", 0, metrics={"top1": 70.0, "nll": 1.0000001}))
    (cell,) = compare_cells(KD[:1], tmp_path / "ours", tmp_path / "theirs")
    assert cell.verdict == "within tolerance"


def test_tolerance_is_the_prediction_interval_of_the_recorded_seeds(tmp_path: Path) -> None:
    """By scipy: mean ± t(n − 1) · s · √(1 + 1/n)."""
    values = [70.0, 71.0, 69.5, 70.5]
    mean, s = sum(values) / 4, math.sqrt(sum((v - 70.25) ** 2 for v in values) / 3)
    half = stats.t.ppf(0.975, 3) * s * math.sqrt(1 + 1 / 4)
    inside = compared(tmp_path / "a", mean + half - 1e-6, values)
    assert inside.verdict == "within tolerance"
    assert (inside.low, inside.high) == (pytest.approx(mean - half), pytest.approx(mean + half))
    assert compared(tmp_path / "b", mean + half + 1e-6, values).verdict == "differs"


def test_a_stated_tolerance_is_around_the_recorded_value(tmp_path: Path) -> None:
    assert compared(tmp_path / "a", 70.5, [70.0, 80.0], tolerance=0.5).verdict == "within tolerance"
    assert compared(tmp_path / "b", 70.6, [70.0, 80.0], tolerance=0.5).verdict == "differs"
    for bad in (-1.0, math.nan):
        with pytest.raises(ConfigError, match="0 or more"):
            compared(tmp_path / "c", 70.0, [70.0], tolerance=bad)


def test_one_recorded_seed_states_no_tolerance(tmp_path: Path) -> None:
    cell = compared(tmp_path, 70.1, [70.0])
    assert cell.verdict == "differs"
    assert "--tolerance" in cell.notes[-1]


def test_other_data_always_differ_and_other_configs_are_noted(tmp_path: Path) -> None:
    write_all(tmp_path / "theirs", with_values("KD", [70.0, 71.0]))
    ours = with_values("KD", [70.0], data__content_hash="e" * 64, config={"other": 1})
    write_all(tmp_path / "ours", ours)
    (cell,) = compare_cells(KD[:1], tmp_path / "ours", tmp_path / "theirs")
    assert cell.verdict == "differs"
    assert cell.notes[:2] == ("other data: dddddddddddd… and eeeeeeeeeeee…", "other config")


def test_missing_says_on_which_side(tmp_path: Path) -> None:
    write_all(tmp_path / "theirs", with_values("KD", [70.0]))
    write_all(tmp_path / "ours", with_values("KD", [70.0, 71.0]))
    cells = compare_cells(KD[:3], tmp_path / "ours", tmp_path / "theirs", failed={KD[2]: "loss is [nan]"})
    assert [c.verdict for c in cells] == ["identical", "missing", "missing"]
    assert cells[1].notes == (f"no record in {tmp_path / 'theirs'}",)
    assert cells[2].notes[1] == "the run failed: loss is [nan]"
    assert not holds(cells)
    assert holds(cells[:1])


def test_print_says_what_each_verdict_means(tmp_path: Path) -> None:
    console = Console(width=160)
    with console.capture() as capture:
        render_cells([compared(tmp_path, 70.0, [70.0, 71.0])], console)
    text = capture.get()
    assert "1 identical" in text
    assert "95 % prediction interval of the method's recorded seeds" in " ".join(text.split())


def test_compute_is_of_records_alone(tmp_path: Path) -> None:
    write_all(tmp_path, with_values("KD", [70.0, 71.0], cost__train_seconds=90.0))
    assert recorded_cost(KD[:3], tmp_path) == (
        "3 runs, of which 2 took 3.0 min of training, one after another, on made-up CPU; 1 were never timed"
    )
    assert "no measurement of their time exists" in recorded_cost(["toy/big-small/dkd/seed0"], tmp_path)
    assert record_path(tmp_path, KD[0]).is_file()
