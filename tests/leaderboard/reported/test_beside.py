"""Reported beside measured: joined by method, task and metric alone, in two columns, with the difference."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from rich.console import Console

from limbeck.leaderboard.checks import ResultsError
from limbeck.leaderboard.reported.beside import Beside, beside, beside_json, render_beside
from limbeck.leaderboard.store import load_results
from limbeck.leaderboard.table import Table, build_tables
from tests.leaderboard.fabricate import fabricate, suite, with_values, write_all


def tables(folder: Path, records: list[Any]) -> list[Table]:
    return build_tables(load_results(write_all(folder, records)))


def printed(found: list[Beside], made: list[Table], **options: bool) -> str:
    console = Console(width=160)
    with console.capture() as capture:
        render_beside(found, made, console, **options)
    return capture.get()


def cifar(folder: Path) -> list[Table]:
    """Made-up runs of a published pair, and of a method that no table has."""
    place = dict(benchmark="cifar100", pair="resnet56-resnet20")
    made = [*with_values("plain", [69.0, 70.0, 71.0], **place), *with_values("KD", [71.0, 71.5, 73.0], **place)]
    return tables(folder, [*made, *with_values("Ours", [70.0, 70.0, 70.0], **place), fabricate("teacher", 0, **place)])


def test_difference_is_measured_minus_printed_by_hand(tmp_path: Path) -> None:
    (one,) = beside(cifar(tmp_path))
    assert one.method == "KD"
    assert one.measured.mean == pytest.approx(fmean([2.0, 1.5, 2.0]))
    same = [f for f in one.reported if f.same_pair]
    # RepDistiller prints 70.66 for KD and 69.06 for the student alone
    assert {(f.source, round(f.gain, 2)) for f in same} >= {("repdistiller", 1.60)}
    (found,) = beside_json([one])
    for figure in found["reported"]:
        assert figure["difference"] == pytest.approx(fmean([2.0, 1.5, 2.0]) - figure["gain"])


def test_two_columns_with_colours_of_their_own_and_no_rank(tmp_path: Path) -> None:
    made = cifar(tmp_path)
    text = printed(beside(made), made)
    assert "REPORTED gain" in text
    assert "MEASURED gain" in text
    assert "rank" not in text.replace("never ranked together", "")
    assert "Benchmarks differ in data and budget" in " ".join(text.split())
    assert "● CIFAR-100" in text
    console = Console(width=160, force_terminal=True, color_system="standard")
    with console.capture() as capture:
        render_beside(beside(made), made, console)
    assert "\x1b[1;36mREPORTED gain" in capture.get()


def test_rows_gives_every_figure_with_its_models_and_source(tmp_path: Path) -> None:
    made = cifar(tmp_path)
    (one,) = beside(made)
    text = printed([one], made, rows=True)
    assert text.count("\nKD") == len(one.reported)
    assert "resnet56 → resnet20" in text


def test_a_method_name_of_another_task_or_metric_is_not_joined(tmp_path: Path) -> None:
    """CD of images is not CD of generators; mIoU is not top-1; lower is better is not FID of another set."""
    records = [fabricate(m, s, task="semantic-segmentation") for m in ("plain", "KD") for s in range(2)]
    with pytest.raises(ResultsError, match="has a reported gain in the same metric"):
        beside(tables(tmp_path / "a", records))
    with pytest.raises(ResultsError, match="on CIFAR-10;"):
        beside(tables(tmp_path / "b", suite(("RKD",), range(2))), dataset="CIFAR-10")


def test_methods_stand_in_the_order_of_the_alphabet(tmp_path: Path) -> None:
    found = beside(tables(tmp_path, suite(("KD", "DKD", "DIST"), range(3))))
    assert [one.method for one in found] == ["DIST", "DKD", "KD"]


def test_abstracts_gains_count_only_over_the_undistilled_student(tmp_path: Path) -> None:
    place = dict(task="3d-object-detection", benchmark="lidar", primary_metric="bev_ap40")
    values = {"plain": 50.0, "PointDistiller": 52.0}
    records = [fabricate(m, s, **place, metrics={"bev_ap40": v + 0.1 * s}) for m, v in values.items() for s in range(2)]
    (one,) = beside(tables(tmp_path, records))
    assert [(f.gain, f.dataset) for f in one.reported] == [(2.8, "not named")]
