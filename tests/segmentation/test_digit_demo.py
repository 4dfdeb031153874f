"""The demo's segmentation pair: its networks are one family, it distils, and its records show networks that learnt."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import numpy as np
import pytest
import torch

from limbeck.engine.config import PairConfig, load_pair, parse, with_overrides
from limbeck.engine.record import RunRecord, iter_records
from limbeck.engine.registry import DATASETS, MODELS
from limbeck.engine.run import RunOptions, execute
from limbeck.engine.single import single_run
from limbeck.engine.suite import load_suite

RECORDS = Path(__file__).parents[2] / "results" / "digit-scenes-demo"
SHORT = ["recipe.epochs=2", "data.train.count=16", "data.val.count=4", "data.test.count=4", "data.batch_size=8"]


@pytest.fixture(scope="module")
def pair() -> PairConfig:
    return load_pair("segmentation/digit_demo")


def test_student_is_a_small_copy_of_the_teacher_with_maps_of_the_same_size(pair):
    pytest.importorskip("mmseg", reason="the networks are mmsegmentation's")
    sizes = []
    for config in (pair.teacher, pair.student):
        model = MODELS.make(config).eval()
        sizes.append(sum(p.numel() for p in model.parameters()))
        with torch.no_grad():
            features = model.extract_feat(torch.zeros(2, 3, 32, 32))
            assert model.decode_head(features).shape == (2, 11, 16, 16)
            assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 11, 32, 32)
        assert [tuple(f.shape[2:]) for f in features] == [(8, 8), (16, 16)]
    assert sizes[0] > 7 * sizes[1]


def test_every_method_has_the_same_budget_as_the_plain_student(pair):
    assert pair.teacher_recipe is None
    assert not pair.teacher_data
    assert all(m.task_weight == 1.0 and m.student is None for m in pair.methods.values())


def test_pair_distils_from_a_cached_teacher(pair, tmp_path):
    pytest.importorskip("mmseg", reason="the networks are mmsegmentation's")
    short = parse(PairConfig, with_overrides(pair.model_dump(), SHORT), "digit_demo")
    options = RunOptions(
        out=tmp_path / "runs",
        records=tmp_path / "records",
        cache=tmp_path / "cache",
        threads=1,
        latency_ms=1.0,
    )
    for method in ("teacher", "KD", "CWD"):
        record = execute(single_run(short, method, 0, tmp_path), options)
        assert record is not None
        assert record.cost.samples_seen == 32
        assert record.cost.teacher_forwards == (0 if method == "teacher" else 16 if method == "KD" else 0), method


@pytest.fixture(scope="module")
def records() -> list[RunRecord]:
    if not RECORDS.is_dir():
        pytest.skip("results/digit-scenes-demo has no records yet")
    return [record for _, record in iter_records(RECORDS)]


def values(records: list[RunRecord], method: str) -> list[float]:
    return [record.value for record in records if record.method == method]


def test_records_are_those_of_the_suite(records):
    group = next(g for g in load_suite("demo").groups if g.config == "segmentation/digit_demo")
    for method in ("plain", *group.methods):
        assert sorted(r.seed for r in records if r.method == method) == group.seeds


def test_students_know_more_than_the_background_and_the_teacher_more_than_they(pair, records):
    """Calling everything background has the background's share as its IoU, and 0 for ten digits."""
    maps = DATASETS.make(pair.data.test).maps
    nothing = 100 * float(np.mean(maps == 0)) / 11
    (teacher,), plain = values(records, "teacher"), values(records, "plain")
    assert mean(plain) > 2 * nothing
    assert teacher > mean(plain) + 5
    for record in records:
        digits = [iou for name, iou in record.per_class["IoU"].items() if name != "background"]
        assert len(digits) == 10
        assert sum(iou > 2 for iou in digits) >= 5, record.id
