"""Ablations: read from variants' records, in order, with gains that numpy and scipy give too."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from rich.console import Console

from limbeck.engine.record import write_failure
from limbeck.leaderboard.ablation import Ablation, build_ablations, own_value, short_value
from limbeck.leaderboard.render import render, to_markdown
from limbeck.leaderboard.store import load_results
from limbeck.leaderboard.table import build_table, build_tables, to_json
from tests.leaderboard.fabricate import fabricate, failure, linked, suite, vary, with_values, write_all

PLAIN, KD, HOT = [70.0, 71.0, 72.0], [72.0, 72.5, 74.5], [71.0, 73.5, 73.0]
DEPTHS = [[a, b, c] for a in (1, 3, 5) for b in (1, 7) for c in (1, 3, 5, 11)][:20]


def base(**options: Any) -> dict[str, Any]:
    return linked(dict(type="KD", **options))


def only(folder: Path) -> Ablation:
    (found,) = build_ablations(load_results(folder).groups[0])
    return found


def labels(found: Ablation) -> list[str]:
    return [p.label + "*" * p.is_base for p in found.points]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_all(tmp_path, with_values("teacher", [76.0]) + with_values("plain", PLAIN))
    write_all(tmp_path, with_values("KD", KD, model=base(temperature=4.0)))
    return write_all(tmp_path, with_values("KD@temperature=16.0", HOT) + with_values("KD@temperature=2", PLAIN))


def test_values_stand_in_order_around_the_methods_own(folder: Path) -> None:
    found = only(folder)
    assert (found.name, found.axis, found.warning) == ("KD@temperature", "linear", None)
    assert [(p.label, p.value, p.is_base, p.row.n) for p in found.points] == [
        ("2", 2, False, 3),
        ("4", 4.0, True, 3),
        ("16", 16.0, False, 3),
    ]
    write_all(folder, vary("KD", "temperature", [1.0]))
    assert only(folder).axis == "log"


def test_figures_agree_with_scipy(folder: Path) -> None:
    cold, own, hot = only(folder).points
    for gain, over in ((hot.over_plain, PLAIN), (hot.over_base, KD)):
        interval = scipy.stats.ttest_rel(HOT, over).confidence_interval()
        assert gain is not None
        assert (gain.mean, gain.low, gain.high) == pytest.approx(
            (np.mean(np.subtract(HOT, over)), interval.low, interval.high)
        )
    found = hot.row.cells["top1"].estimate
    assert found.half == pytest.approx(scipy.stats.t.ppf(0.975, 2) * scipy.stats.sem(HOT))
    assert own.over_base is None
    assert own.over_plain is not None
    assert own.over_plain.mean == pytest.approx(2.0)
    assert cold.over_plain is not None
    assert (cold.over_plain.mean, cold.over_plain.half) == (0.0, 0.0)


def test_gains_use_shared_seeds(folder: Path) -> None:
    write_all(folder, [fabricate("KD@temperature=8.0", s, metrics={"top1": 80.0 + s}) for s in (1, 2)])
    point = only(folder).points[2]
    assert point.over_base is not None
    assert (point.over_base.n, point.over_base.mean) == (2, pytest.approx(np.mean([81 - 72.5, 82 - 74.5])))


def test_table_is_the_same_with_and_without_variants(tmp_path: Path) -> None:
    write_all(tmp_path, suite(("KD", "DKD"), range(3)))
    before = build_table(load_results(tmp_path).groups[0])
    write_all(tmp_path, vary("KD", "temperature", [1.0, 2.0, 8.0]) + vary("DKD", "student.depths", DEPTHS))
    group = load_results(tmp_path).groups[0]
    after = build_table(group)
    assert (after.rows, after.warnings, after.metrics) == (before.rows, before.warnings, before.metrics)  # Holm too
    assert to_markdown(after) == to_markdown(before)
    assert list(group.students) == ["plain", "dkd", "kd"]
    assert len(group.variants) == 3 + len(DEPTHS)
    assert [a.name for a in after.ablations] == ["DKD@student.depths", "KD@temperature"]


@pytest.mark.parametrize(
    ("model", "option", "value"),
    [
        (linked(dict(type="KD", weight=0.9)), "weight", 0.9),
        (linked(dict(type="KD"), dict(type="AT", weight=5)), "1.weight", 5),
        (linked(dict(type="KD"), task_weight=0.1), "task_weight", 0.1),
        (linked(student=dict(depths=(3, 3))), "student.depths", [3, 3]),
        (linked(dict(type="KD", taps=[("a", "b")])), "taps", [["a", "b"]]),
        (linked(dict(type="E", teacher=["teacher", "vit"])), "teacher", ["teacher", "vit"]),
        (linked(dict(type="KD")), "teacher", "teacher"),
    ],
)
def test_own_value_is_read_from_the_config(model: dict[str, Any], option: str, value: Any) -> None:
    assert own_value([fabricate("KD", s, model=model) for s in range(2)], option) == (True, value)


def test_own_value_that_cannot_be_told() -> None:
    lone = fabricate("KD", 0)
    assert own_value([], "weight") == (False, None)
    for option in ("weight", "1.weight", "student.depths", "task_weight"):
        assert own_value([lone], option) == (False, None)
    assert own_value([fabricate("KD", 0, model=base())], "3.weight") == (False, None)
    two = [fabricate("KD", s, model=base(weight=float(s))) for s in range(2)]
    assert own_value(two, "weight") == (False, None)  # the seeds do not agree


def test_unread_own_value_is_base(tmp_path: Path) -> None:
    found = only(write_all(tmp_path, suite(("KD",), range(3)) + vary("KD", "temperature", [8.0, 1.0])))
    assert labels(found) == ["base*", "1", "8"]
    assert found.axis == "linear"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.0, "2"),
        (0.1, "0.1"),
        (-3, "-3"),
        (None, "None"),
        (True, "True"),
        ("off", "off"),
        ([1, 3, 5], "1-3-5"),
        ([["layer1", "layer1"]], "layer1"),
        ([["layer1", "layer2"], ["norm", "norm"]], "layer1→layer2+norm"),
        ([], ""),
    ],
)
def test_values_are_short(value: Any, text: str) -> None:
    assert short_value(value) == text


def test_teachers_are_counted_and_named(tmp_path: Path) -> None:
    model = linked(dict(type="E", teacher=["teacher", "vit", "mixer"]))
    write_all(tmp_path, suite((), range(2)) + [fabricate("E", s, model=model) for s in range(2)])
    found = only(write_all(tmp_path, vary("E", "teacher", [["teacher", "vit"], ["teacher"]], range(2))))
    assert labels(found) == ["1: teacher", "2: teacher+vit", "3: teacher+vit+mixer*"]
    assert found.axis == "nominal"


def test_lists_of_numbers_ascend_and_long_labels_stay_distinct(tmp_path: Path) -> None:
    write_all(tmp_path, suite(("KD",), range(2)))
    values = [[10, 1], [2, 5], [2, 1]]
    found = only(write_all(tmp_path, vary("KD", "student.depths", values, range(2))))
    assert labels(found) == ["base*", "2-1", "2-5", "10-1"]
    long = [[[f"a_rather_long_name_of_tap_{i}", "x"]] for i in range(2)]
    _, taps = build_ablations(load_results(write_all(tmp_path, vary("KD", "taps", long, range(2)))).groups[0])
    assert [len(x) for x in labels(taps)[1:]] == [24, 28]
    assert labels(taps)[2].endswith("… (2)")


def test_variants_of_the_plain_student_and_of_an_absent_method(tmp_path: Path) -> None:
    write_all(tmp_path, suite((), range(3)) + vary("plain", "student.width", [2, 8]) + vary("KD", "weight", [1.0]))
    missing, widths = build_ablations(load_results(tmp_path).groups[0])
    assert missing.warning == "KD@weight: no record of the method itself"
    assert missing.base is None
    assert labels(widths) == ["base*", "2", "8"]
    assert {p.over_base for p in widths.points} == {None}  # it would be the gain over plain again
    assert [p.over_plain is None for p in widths.points] == [True, False, False]


def test_warning_is_one_line_however_many_values(tmp_path: Path) -> None:
    write_all(tmp_path, suite(("KD",), range(5)) + vary("KD", "student.depths", DEPTHS, range(3)))
    write_all(
        tmp_path,
        [
            fabricate(f"KD@student.depths={DEPTHS[0]}", 9),
            fabricate(f"KD@student.depths={DEPTHS[1]}", 0, status="unreliable"),
        ],
    )
    for seed in (3, 4):
        write_failure(tmp_path, failure(f"KD@student.depths={DEPTHS[2]}", seed))
    group = load_results(tmp_path).groups[0]
    assert group.warnings == []
    assert only(tmp_path).warning == (
        "KD@student.depths: 20 of 20 values lack seeds of the plain student (3, 4); "
        "1 of 20 values have seeds without plain student, left out of the gain; "
        f"unreliable: {'-'.join(map(str, DEPTHS[1]))}; 2 runs failed (NonFiniteLoss)"
    )


def test_assumption_is_told_where_the_methods_row_does_not(tmp_path: Path) -> None:
    write_all(tmp_path, suite((), range(2)) + [fabricate("KD", s, assumption="Same.") for s in range(2)])
    write_all(tmp_path, vary("KD", "weight", [1.0], range(2), assumption="Same."))
    assert only(tmp_path).assumption is None
    write_all(tmp_path, vary("KD", "weight", [1.0], range(2), assumption="Other."))
    assert only(tmp_path).assumption == "Other."


def test_json_has_the_points_without_p(folder: Path) -> None:
    table = build_table(load_results(folder).groups[0])
    raw = json.loads(json.dumps(to_json(table)))
    (ablation,) = raw["ablations"]
    assert [(p["label"], p["row"]["n"], p["is_base"]) for p in ablation["points"]] == [
        ("2", 3, False),
        ("4", 3, True),
        ("16", 3, False),
    ]
    assert ablation["points"][2]["row"]["records"]["1"] == "toy/big-small/kd@temperature=16.0/seed1"
    assert ablation["points"][2]["over_base"]["mean"] == pytest.approx(np.mean(np.subtract(HOT, KD)))
    assert {p["row"]["p"] for p in ablation["points"]} == {None}
    assert "ablations" not in to_json(table, ablations=False)


def printed(folder: Path, **options: bool) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    for table in build_tables(load_results(folder)):
        render(table, console, **options)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_render_fits_80_columns(tmp_path: Path) -> None:
    model = linked(dict(type="EnsembleKD", teacher=["teacher", "vit", "mixer"]), student=dict(depths=[3, 3, 3]))
    write_all(tmp_path, suite(("KD", "FitNet"), range(5)))
    write_all(tmp_path, [fabricate("EnsembleKD", s, model=model) for s in range(5)])
    for i, depths in enumerate(DEPTHS):
        write_all(tmp_path, vary("EnsembleKD", "student.depths", [depths], student__parameters=1000 * i + 7))
    taps = [[("layer1", "layer1")], [("layer1", "layer2"), ("layer2", "layer3"), ("layer3", "layer4")]]
    write_all(tmp_path, vary("FitNet", "taps", taps, range(5), status="unreliable"))
    write_all(tmp_path, vary("EnsembleKD", "teacher", [["teacher"], ["teacher", "vit"]], range(5)))
    lines = printed(tmp_path)
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert text.count("over EnsembleKD") == 2
    for said in (
        "EnsembleKD: student.depths",
        "3-3-3*",
        "5-1-11",
        "params",
        "2: teacher+vit",
        "layer1 (unreliable)",
        "no p is",
    ):
        assert said in text
    start = next(i for i, line in enumerate(lines) if line == "EnsembleKD: student.depths")
    block = lines[start + 3 : start + 3 + len(DEPTHS) + 1]
    assert all("±" in line for line in block)  # one line a value, nothing was broken
    without = printed(tmp_path, ablations=False)
    assert lines[: len(without)] == without
    assert not any("@" in line or "Ablations" in line for line in without)
