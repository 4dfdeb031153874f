"""The demo's detection pair: its networks are one family, it distils, and its records show networks that learnt."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import pytest
import torch

from limbeck.engine.config import PairConfig, load_pair, parse, with_overrides
from limbeck.engine.record import RunRecord, iter_records
from limbeck.engine.registry import MODELS
from limbeck.engine.run import RunOptions, execute
from limbeck.engine.single import single_run
from limbeck.engine.suite import load_suite, plan

RECORDS = Path(__file__).parents[2] / "results" / "digit-scenes-boxes-demo"
SHORT = [
    "recipe.epochs=2",
    "teacher_recipe.epochs=2",
    "data.train.count=4",
    "data.val.count=2",
    "data.test.count=2",
    "data.eval_batch_size=2",
]


@pytest.fixture(scope="module")
def pair() -> PairConfig:
    return load_pair("detection/digit_demo")


def test_group_of_the_demo_is_three_seeds_of_every_method():
    suite = load_suite("demo")
    group = next(g for g in suite.groups if g.config == "detection/digit_demo")
    jobs = [job for job in plan(suite) if job.config == group.config]
    students = [(seed, method) for seed in (0, 1, 2) for method in ("plain", "PKD", "ACAM-KD")]
    assert [(job.seed, job.method) for job in jobs] == [(0, "teacher"), *students]
    assert ["plain", *group.methods] == load_pair(group.config).method_names()


def test_student_is_a_small_copy_of_the_teacher_with_maps_of_the_same_size(pair):
    pytest.importorskip("mmdet", reason="the networks are mmdetection's")
    sizes = []
    for config, width in ((pair.teacher, 48), (pair.student, 24)):
        model = MODELS.make(config).eval()
        sizes.append(sum(p.numel() for p in model.parameters()))
        with torch.no_grad():
            (neck,) = model.extract_feat(torch.zeros(2, 3, 64, 64))
            logits, boxes = model(torch.zeros(2, 3, 64, 64))
        assert neck.shape == (2, width, 8, 8)
        assert logits.shape == (2, 10, 8, 8)
        assert boxes.shape == (2, 4 * 17, 8, 8)
    assert sizes[0] > 4 * sizes[1]


def test_every_method_has_the_same_budget_as_the_plain_student(pair):
    assert not pair.teacher_data
    assert all(m.task_weight == 1.0 and m.student is None for m in pair.methods.values())


def test_pair_distils_from_a_cached_teacher(pair, tmp_path):
    pytest.importorskip("mmdet", reason="the networks are mmdetection's")
    short = parse(PairConfig, with_overrides(pair.model_dump(), SHORT), "digit_demo")
    options = RunOptions(
        out=tmp_path / "runs",
        records=tmp_path / "records",
        cache=tmp_path / "cache",
        threads=1,
        latency_ms=1.0,
    )
    for method in ("teacher", "PKD", "ACAM-KD"):
        record = execute(single_run(short, method, 0, tmp_path), options)
        assert record is not None
        assert set(record.metrics) == {"mAP", "AP50", "AP75"}
        assert record.cost.samples_seen == 8
        assert record.cost.teacher_forwards == (4 if method == "PKD" else 0), method


@pytest.fixture(scope="module")
def records() -> list[RunRecord]:
    if not RECORDS.is_dir():
        pytest.skip("results/digit-scenes-boxes-demo has no records yet")
    return [record for _, record in iter_records(RECORDS)]


def test_records_are_those_of_the_suite(records):
    suite = load_suite("demo")
    assert {r.id for r in records} == {j.id for j in plan(suite) if j.config == "detection/digit_demo"}


def test_students_find_digits_and_the_teacher_more_of_them(records):
    values = {m: [r.value for r in records if r.method == m] for m in ("teacher", "plain")}
    assert min(values["plain"]) > 3
    assert values["teacher"][0] > mean(values["plain"]) + 5
