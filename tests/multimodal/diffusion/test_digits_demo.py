"""The demo's diffusion pair: one small network, one budget, short runs, and records that show what it shows."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import cast

import pytest

from limbeck.engine.config import PairConfig, expand, load_pair
from limbeck.engine.cost import count_parameters
from limbeck.engine.record import RunRecord, iter_records
from limbeck.engine.registry import DATASETS, LOOPS, MODELS
from limbeck.engine.suite import load_suite, plan
from limbeck.multimodal.diffusion.loops import Halving

CONFIG = "multimodal/diffusion/digits_demo"
RECORDS = Path(__file__).parents[3] / "results" / "diffusion-digits-demo"


@pytest.fixture(scope="module")
def pair() -> PairConfig:
    return load_pair(CONFIG)


def test_group_trains_one_teacher_and_every_method_with_two_seeds(pair):
    jobs = [(job.method, job.seed) for job in plan(load_suite("demo")) if job.config == CONFIG]
    methods = ["plain", "FromTeacher", "PD"]
    assert pair.method_names() == methods
    assert jobs == [("teacher", 0), *((method, seed) for seed in range(2) for method in methods)]


def test_it_is_the_digits_benchmark_made_small(pair):
    whole = load_pair("multimodal/diffusion/digits_1step")
    assert pair.benchmark == "diffusion-digits-demo" != whole.benchmark
    assert pair.data.train == whole.data.train
    assert pair.adapter == whole.adapter
    assert pair.metric == whole.metric
    assert (pair.data.val["count"], pair.data.test["count"]) == (100, 400)
    pytest.importorskip("diffusers", reason="needs the 'multimodal' extra")
    teacher, student, large = (count_parameters(MODELS.make(c)) for c in (pair.teacher, pair.student, whole.student))
    assert teacher == student < large / 3


def test_every_method_has_the_updates_that_the_docstring_says(pair):
    batches = len(DATASETS.make(dict(pair.data.train))) // pair.data.batch_size
    for method in pair.method_names():
        run = expand(pair, method, 0)
        assert run.recipe.epochs * batches == 96
        assert run.deployed["sampler"] == dict(steps=1)
    assert expand(pair, "teacher", 0).recipe.epochs * batches == 192
    run = expand(pair, "PD", 0)
    rounds = cast(Halving, LOOPS.make(run.loop)).rounds(run)
    assert rounds == [2, 1]
    assert run.model["links"][0] == dict(type="ProgressiveDistillation", steps=1, guidance=1.5)
    # The first teacher is the pair's own sampler: what PD halves is what the teacher's figure is of.
    assert run.loop["start"] == pair.teacher["sampler"]["steps"]
    assert pair.teacher["sampler"]["guidance"] == 1.5


@pytest.fixture(scope="module")
def records() -> list[RunRecord]:
    if not RECORDS.is_dir():
        pytest.skip("results/diffusion-digits-demo has no records yet")
    return [record for _, record in iter_records(RECORDS)]


def test_records_are_those_of_the_suite_and_what_is_distilled_beats_the_teacher_in_one_step(records):
    seeds: dict[str, dict[int, float]] = {}
    for record in records:
        seeds.setdefault(record.method, {})[record.seed] = record.value
        assert record.metrics["calls"] == (8 if record.method == "teacher" else 1)
    assert {method: sorted(found) for method, found in seeds.items()} == {
        "teacher": [0],
        **{method: [0, 1] for method in ("plain", "FromTeacher", "PD")},
    }
    assert mean(seeds["PD"].values()) < mean(seeds["FromTeacher"].values())
