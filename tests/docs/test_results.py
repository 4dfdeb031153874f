"""The committed records are what the suites would make today, and the README's tables are made from them."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import pytest

from limbeck.engine.record import RunRecord, iter_records
from limbeck.engine.suite import load_suite, plan, state
from limbeck.leaderboard import build_tables, load_results, update_markdown
from limbeck.leaderboard.pictures.controls import Controls
from limbeck.leaderboard.pictures.hand_overs import HandOver
from limbeck.leaderboard.site.controls import controls_markdown
from limbeck.leaderboard.site.hand_over import hand_over_markdown

ROOT = Path(__file__).parents[2]


SUITES = """demo fashion-mnist cifar10-jpeg-cross ensemble flowers5 search ablation camvid bccd lidar dho dho-digits
active-digits active diffusion"""


@pytest.mark.parametrize("suite", SUITES.split())
def test_every_run_of_a_suite_has_a_current_record(suite):
    states = {job.id: state(job, ROOT / "results")[0] for job in plan(load_suite(suite))}
    assert set(states.values()) == {"done"}, {i: s for i, s in states.items() if s != "done"}


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/vision-results.md",
        "docs/segmentation-results.md",
        "docs/detection-results.md",
        "docs/pointcloud-results.md",
        "docs/multimodal.md",
        "docs/diffusion.md",
    ],
)
def test_tables_in_pages_are_what_the_records_say(page):
    assert not update_markdown(ROOT / page, build_tables(load_results(ROOT / "results")), check=True)


def test_detection_page_has_the_measured_cost_of_a_step():
    """Time from the benchmark's own file, memory from the records of the suite."""
    (steps,) = json.loads((ROOT / "benchmarks" / "perf" / "steps" / "bccd.json").read_text())["methods"].values()
    text = (ROOT / "docs" / "detection-results.md").read_text(encoding="utf-8")
    table = text.split("<!-- steps -->")[1].split("<!-- /steps -->")[0]
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]
    peaks: dict[str, list[float]] = {}
    for _, record in iter_records(ROOT / "results" / "bccd" / "efficientnet_lite0-resnet18_10"):
        peaks.setdefault(record.method, []).append(record.cost.peak_memory_mb)
    plain = fmean(peaks["plain"])
    said = {m: (f"{s['median']:.2f}", f"{s['min']:.2f} to {s['max']:.2f}") for m, s in steps.items() if m in peaks}
    assert {row[0]: (row[1], row[2]) for row in rows} == said
    assert {row[0]: row[3] for row in rows} == {m: f"{fmean(peaks[m]) / plain:.2f}" for m in said}


def test_segmentation_page_has_the_measured_cost_of_a_step():
    pairs = json.loads((ROOT / "benchmarks" / "perf" / "steps" / "camvid.json").read_text())["methods"]
    text = (ROOT / "docs" / "segmentation-results.md").read_text(encoding="utf-8")
    table = text.split("<!-- steps -->")[1].split("<!-- /steps -->")[0]
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]
    said = {(row[0], row[1]): (row[2], row[3]) for row in rows}
    found = {
        (f"`{pair}`", method): (f"{s['median']:.2f}", f"{s['min']:.2f} to {s['max']:.2f}")
        for pair, methods in pairs.items()
        for method, s in methods.items()
    }
    assert said == found


@pytest.mark.parametrize(
    ("kept", "kind", "markdown"),
    [("hand-over", HandOver, hand_over_markdown), ("controls", Controls, controls_markdown)],
)
def test_diffusion_page_has_what_was_measured_beside_the_records(kept, kind, markdown):
    found = kind.model_validate_json((ROOT / "benchmarks" / "diffusion" / f"{kept}.json").read_bytes())
    table = markdown(found).split("\n\n")[1]
    assert table in (ROOT / "docs" / "diffusion.md").read_text(encoding="utf-8")


def test_lidar_page_says_what_to_expect_at_each_size():
    """Means over the seeds, of simulated scenes and of the real frames."""
    text = (ROOT / "docs" / "pointcloud-results.md").read_text(encoding="utf-8")
    table = text.split("<!-- expect -->")[1].split("<!-- /expect -->")[0]
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]
    for row, (size, width) in zip(rows, (("4×", 32), ("8×", 23), ("16×", 16)), strict=True):
        found: dict[str, list[RunRecord]] = {}
        for _, record in iter_records(ROOT / "results" / "lidar-scenes" / f"pointpillars64-pointpillars{width}"):
            found.setdefault(record.method, []).append(record)
        student = found["plain"][0].student
        figures = [
            f"{fmean(r.metrics[name] for r in found[method]):.1f}"
            for name in ("bev_ap40", "kitti-frames.bev_ap40")
            for method in ("plain", "CWD")
        ]
        assert row == [size, f"{student.parameters / 1e3:,.0f}k", f"{(student.flops or 0) / 1e9:.2f}G", *figures]
    (teacher,) = iter_records(ROOT / "results" / "lidar-scenes" / "pointpillars64-pointpillars32" / "teacher")
    values = [teacher[1].metrics[name] for name in ("bev_ap40", "kitti-frames.bev_ap40")]
    assert "(the teacher has {:.1f}) and on the 25 real frames ({:.1f})".format(*values) in text


def test_results_hold_records_and_nothing_else():
    files = [p for p in (ROOT / "results").rglob("*") if p.is_file()]
    assert files
    assert all(p.suffix == ".json" and not p.name.endswith(".failed.json") for p in files)


def test_records_name_no_folder_of_a_machine():
    def texts(value: object) -> list[str]:
        if isinstance(value, dict):
            return [t for v in value.values() for t in texts(v)]
        if isinstance(value, list):
            return [t for v in value for t in texts(v)]
        return [value] if isinstance(value, str) else []

    for path, record in iter_records(ROOT / "results"):
        assert not [t for t in texts(record.config) if t.startswith("/")], path
