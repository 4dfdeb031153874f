"""Tables: every figure from the records, and the texts made of them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from rich.console import Console

from limbeck.leaderboard.render import MarkerError, count, number, probability, render, to_markdown, update_markdown
from limbeck.leaderboard.store import load_results
from limbeck.leaderboard.table import Row, Table, build_table, build_tables, to_json
from tests.leaderboard.fabricate import fabricate, suite, with_values, write_all

PLAIN, KD, DKD = [70.0, 71.0, 72.0], [72.0, 72.5, 74.5], [70.5, 71.5, 71.0]


def small(tmp_path: Path, **changes: object) -> Table:
    write_all(tmp_path, with_values("plain", PLAIN, **changes))
    write_all(tmp_path, with_values("KD", KD, **changes) + with_values("DKD", DKD, **changes))
    write_all(tmp_path, with_values("teacher", [76.0], **changes))
    return build_table(load_results(tmp_path).groups[0])


def row(table: Table, method: str) -> Row:
    return next(r for r in table.rows if r.method == method)


def test_rows_stand_in_order(tmp_path: Path) -> None:
    assert [r.method for r in small(tmp_path).rows] == ["teacher", "plain", "KD", "DKD"]


def test_figures_agree_with_numpy_and_scipy(tmp_path: Path) -> None:
    table = small(tmp_path)
    kd = row(table, "KD")
    assert kd.cells["top1"].estimate.mean == pytest.approx(np.mean(KD))
    assert kd.cells["top1"].estimate.half == pytest.approx(4.302653 * np.std(KD, ddof=1) / np.sqrt(3), rel=1e-6)
    assert kd.gain is not None
    assert kd.gain.difference.mean == pytest.approx(np.mean(np.subtract(KD, PLAIN)))
    raw = [scipy.stats.ttest_rel(m, PLAIN).pvalue for m in (KD, DKD)]
    assert kd.gain.p == pytest.approx(raw[0])
    assert kd.p == pytest.approx(2 * raw[0])
    assert row(table, "DKD").p == pytest.approx(max(2 * raw[0], raw[1]))
    assert kd.gap_closed == pytest.approx((73 - 71) / (76 - 71))
    teacher, plain = row(table, "teacher"), row(table, "plain")
    assert (teacher.rank, teacher.gain, plain.gain, plain.gap_closed) == (None, None, None, None)


def test_cost_is_mean_and_median(tmp_path: Path) -> None:
    records = suite(("KD",), range(4))
    table = build_table(load_results(write_all(tmp_path, records)).groups[0])
    mine = [r.cost for r in records if r.method == "KD"]
    cost = row(table, "KD").cost
    assert cost.student_latency_ms == pytest.approx(np.median([c.student_latency_ms for c in mine]))
    assert cost.train_seconds == pytest.approx(np.mean([c.train_seconds for c in mine]))
    assert cost.peak_memory_mb == pytest.approx(np.mean([c.peak_memory_mb for c in mine]))
    assert (cost.teacher_forwards, cost.parameters, cost.flops) == (800, 78_000, 12_400_000)


def test_columns_of_lidar_and_of_further_test_sets(tmp_path: Path) -> None:
    names = ["bev_ap40", "3d_ap40", "bev_ap40_strict", "bev_ap_exact", "3d_ap_exact", "ap40_ceiling"]
    metrics = {name: 10.0 + n for n, name in enumerate([*names, *(f"street.{name}" for name in names)])}
    lidar: dict[str, Any] = dict(metrics=metrics, primary_metric="bev_ap40", task="3d-object-detection")
    write_all(tmp_path, [fabricate(m, seed, **lidar) for m in ("plain", "KD") for seed in range(2)])
    table = build_table(load_results(tmp_path).groups[0])
    assert table.metrics == ("bev_ap40", "3d_ap40", "bev_ap40_strict", "street.bev_ap40")
    heads = next(line for line in to_markdown(table).splitlines() if line.startswith("| rank"))
    assert "| BEV AP40 ↑ | gain" in heads
    assert "| 3D AP40 ↑ | BEV AP40, strict | BEV AP40, street ↑ |" in heads
    assert set(row(table, "KD").cells) == set(metrics)  # the others are there, for JSON


def test_gain_and_gap_use_shared_seeds_only(tmp_path: Path) -> None:
    write_all(tmp_path, with_values("plain", [70.0, 72.0]) + with_values("teacher", [80.0]))
    write_all(tmp_path, [fabricate("KD", s, metrics={"top1": v}) for s, v in ((1, 75.0), (2, 99.0))])
    kd = row(build_table(load_results(tmp_path).groups[0]), "KD")
    assert kd.gain is not None
    assert (kd.gain.seeds, kd.gain.difference.mean) == ((1,), 3.0)
    assert kd.gap_closed == pytest.approx(3 / (80 - 72))


def test_small_gap_is_blank(tmp_path: Path) -> None:
    write_all(tmp_path, with_values("plain", PLAIN) + with_values("KD", KD) + with_values("teacher", [71.4]))
    assert row(build_table(load_results(tmp_path).groups[0]), "KD").gap_closed is None


def test_lower_is_better_is_ranked_the_other_way(tmp_path: Path) -> None:
    table = small(tmp_path, higher_is_better=False)
    assert [r.method for r in table.rows] == ["teacher", "plain", "DKD", "KD"]
    write_all(tmp_path, with_values("DKD", [50.0, 50.1, 50.2], higher_is_better=False))
    table = build_table(load_results(tmp_path).groups[0])
    assert row(table, "DKD").rank == 1
    assert row(table, "plain").rank == row(table, "KD").rank == 2
    assert row(table, "DKD").gap_closed is None  # this teacher is worse


def test_flagged_row_is_shown_but_not_ranked(tmp_path: Path) -> None:
    small(tmp_path)
    write_all(tmp_path, [fabricate("KD", 1, status="unreliable", metrics={"top1": 72.5, "nll": 1.0})])
    table = build_table(load_results(tmp_path).groups[0])
    kd, dkd = row(table, "KD"), row(table, "DKD")
    assert (kd.flags, kd.rank, kd.p, kd.n) == (("unreliable",), None, None, 3)
    assert dkd.p == pytest.approx(scipy.stats.ttest_rel(DKD, PLAIN).pvalue)  # the family lost a member


def test_single_seed_has_neither_interval_nor_rank(tmp_path: Path) -> None:
    write_all(tmp_path, suite(("KD",), [0]))
    table = build_table(load_results(tmp_path).groups[0])
    assert {r.rank for r in table.rows} == {None}
    assert "±" not in to_markdown(table).split("\n\n")[1]


def test_each_teacher_is_a_row_and_one_measures_the_gap(tmp_path: Path) -> None:
    write_all(tmp_path, with_values("plain", PLAIN) + with_values("teacher", [76.0]) + with_values("KD", KD))
    write_all(tmp_path, with_values("teacher-vit", [80.0, 82.0], student__name="TinyViT"))
    vit = [f"toy/big-small/teacher-vit/seed{s % 2}" for s in range(3)]
    write_all(tmp_path, (with_values("DKD-vit", DKD, teacher_record=vit[s])[s] for s in range(3)))
    table = build_table(load_results(tmp_path).groups[0])
    assert [(r.method, r.role, r.n, r.rank) for r in table.rows[:3]] == [
        ("teacher", "teacher", 1, None),
        ("teacher-vit", "teacher", 2, None),
        ("plain", "plain", 3, row(table, "plain").rank),
    ]
    assert row(table, "teacher-vit").cells["top1"].estimate.mean == 81.0  # of its two seeds
    assert (table.teacher, table.reference) == ("BigNet, TinyViT", "teacher")
    assert row(table, "DKD-vit").gap_closed == pytest.approx((np.mean(DKD) - 71) / (76 - 71))
    write_all(tmp_path, with_values("DIST", DKD, teacher_record=vit[0]))
    table = build_table(load_results(tmp_path).groups[0])
    assert row(table, "KD").gap_closed == pytest.approx((73 - 71) / (81 - 71))
    assert "(teacher-vit − plain)" in to_markdown(table)


def test_marks_are_explained(tmp_path: Path) -> None:
    write_all(tmp_path, suite(("DIST",), range(3)))
    assert "†" not in to_markdown(build_table(load_results(tmp_path).groups[0]))
    said = dict(assumption="The weight is ours.")
    write_all(tmp_path, [fabricate(m, s, **said) for m in ("KD", "DKD") for s in range(3)])
    other = dict(assumption="The projector is.", student__name="SimKDStudent", student__parameters=96_000)
    write_all(tmp_path, [fabricate("SimKD", s, **other) for s in range(3)])
    table = build_table(load_results(tmp_path).groups[0])
    assert {r.method: r.marks for r in table.rows if r.marks} == {"KD": "†", "DKD": "†", "SimKD": "†‡"}
    console = Console(file=io.StringIO(), width=100)
    render(table, console)
    text = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    for shown in (text, to_markdown(table)):
        assert "KD†" in shown
        assert "SimKD†‡" in shown
        names = " and ".join(
            sorted(n for n in ("DKD, KD", "KD, DKD") if f"{n}, ours, not the paper's: The weight is ours." in shown)
        )
        assert names in ("DKD, KD", "KD, DKD")
        assert "SimKD, ours, not the paper's: The projector is." in shown
        assert "‡ Deploys another network than the plain student (SmallNet, 78k parameters): SimKD SimKDS" in shown
        assert "teacher‡" not in shown
    assert json.loads(json.dumps(to_json(table)))["rows"][2]["assumption"] in (None, "The weight is ours.")


def test_best_method_is_bold_with_its_mark(tmp_path: Path) -> None:
    write_all(tmp_path, with_values("plain", PLAIN) + with_values("KD", [90.0, 90.1, 90.2], assumption="All."))
    assert "| **KD†** |" in to_markdown(build_table(load_results(tmp_path).groups[0]))


def test_json_round_trips(tmp_path: Path) -> None:
    table = small(tmp_path)
    raw = json.loads(json.dumps(to_json(table)))
    assert raw["rows"][2]["cells"]["top1"]["estimate"]["mean"] == row(table, "KD").cells["top1"].estimate.mean
    assert raw["rows"][2]["n"] == 3
    assert raw["rows"][2]["records"]["1"] == "toy/big-small/kd/seed1"


def test_render_fits_100_columns(tmp_path: Path) -> None:
    write_all(tmp_path, suite(("KD", "DKD", "DIST", "FitNet")))
    console = Console(file=io.StringIO(), width=100)
    for table in build_tables(load_results(tmp_path)):
        render(table, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text  # nothing was cut
    for word in ("teacher", "plain", "FitNet", "gap closed", "latency ms", "NLL ↓", "Holm"):
        assert word in text


def test_render_takes_brackets_as_text(tmp_path: Path) -> None:
    write_all(tmp_path, [fabricate("plain", 0), fabricate("[bold]KD", 0)])
    console = Console(file=io.StringIO(), width=100)
    render(build_table(load_results(tmp_path).groups[0]), console)
    assert "[bold]KD" in console.file.getvalue()  # type: ignore[attr-defined]


def test_markdown_has_one_line_a_row(tmp_path: Path) -> None:
    table = small(tmp_path)
    lines = [line for line in to_markdown(table).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(table.rows)
    assert len({line.count("|") for line in lines}) == 1
    assert f"{np.mean(KD):.2f} ± {row(table, 'KD').cells['top1'].estimate.half:.2f}" in lines[4]


def test_update_markdown_regenerates_and_checks(tmp_path: Path) -> None:
    tables = [small(tmp_path / "results")]
    readme = tmp_path / "README.md"
    readme.write_text(
        "# Top\n\n<!-- table: toy -->\nold\n<!-- /table -->\n\ntext\n\n<!-- table: toy/big-small --><!-- /table -->\n"
    )
    before = readme.read_text()
    assert update_markdown(readme, tables, check=True)
    assert readme.read_text() == before
    assert update_markdown(readme, tables)
    text = readme.read_text()
    assert text.startswith("# Top\n\n<!-- table: toy -->\n\n**toy/big-small**")
    assert "old" not in text
    assert "\n\ntext\n\n" in text
    assert text.count("| KD |") + text.count("| **KD** |") == 2
    assert not update_markdown(readme, tables)
    assert not update_markdown(readme, tables, check=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no markers", "no <!-- table"),
        ("<!-- table: toy -->\n", "no <!-- table"),
        ("<!-- table: toy --><!-- /table --><!-- table: toy -->", "missing"),
        ("<!-- table: nope --><!-- /table -->", "'nope'"),
    ],
)
def test_update_markdown_refuses_bad_markers(tmp_path: Path, text: str, said: str) -> None:
    tables = [small(tmp_path / "results")]
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(MarkerError, match=said):
        update_markdown(readme, tables)
    assert readme.read_text() == text
    with pytest.raises(MarkerError, match="no such file"):
        update_markdown(tmp_path / "absent.md", tables)


def test_number_texts() -> None:
    assert number(-0.004, 2) == "0.00"
    assert number(-0.004, 2, sign=True) == "0.00"
    assert number(-1.5, 1) == "−1.5"
    assert number(1.5, 1, sign=True) == "+1.5"
    assert number(None, 1) == "–"
    assert [count(v) for v in (12, 78_000, 1_234_567, 2.5e9, None)] == ["12", "78k", "1.23M", "2.5G", "–"]
    assert [probability(p) for p in (0.0, 0.00099, 0.0123, None)] == ["<0.001", "<0.001", "0.012", "–"]
