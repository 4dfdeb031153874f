"""Runs of tiny pairs, trained once for all tests that read their records: toys, detectors of images and of clouds."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

METHODS = ("teacher", "plain", "ACAM-KD")
EPOCHS = 2


def detection_pair() -> Any:
    """Two epochs on 12 scenes; ACAM-KD on two levels, from a cached teacher."""
    from limbeck.engine.config import PairConfig, parse

    scenes = {
        split: dict(type="DigitScenesBoxes", split=split, count=count, size=(64, 64), digits=(1, 3))
        for split, count in (("train", 12), ("val", 4), ("test", 5))
    }
    student = dict(type="ResNetDetector", base_channels=8, channels=8, stacked_convs=1, head="gfl", num_classes=10)
    student |= dict(input_size=(3, 64, 64), mean=0.5, std=0.5)
    neck = [(f"neck[{level}]", f"neck[{level}]") for level in (0, 1)]
    link = dict(type="ACAMKD", taps=neck, count=3, weight=0.1)
    value = dict(
        task="object-detection",
        benchmark="toy-boxes",
        pair="big-small",
        data=dict(scenes, batch_size=4, eval_batch_size=4),
        adapter=dict(type="DetectionAdapter"),
        metric=dict(type="DetectionMetric", primary="mAP"),
        student=student,
        teacher=student | dict(channels=16),
        recipe=dict(epochs=EPOCHS, optimizer=dict(type="AdamW", lr=2e-3), param_scheduler=[]),
        methods={"ACAM-KD": dict(links=[link])},
        cache=dict(dtype="float16"),
    )
    return parse(PairConfig, value, "made-up pair")


@pytest.fixture(scope="session")
def digit_runs(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """`results` and `runs`, the folders of records and weights, and the records by method."""
    pytest.importorskip("mmdet", reason="the students are mmdetection's networks")
    return trained_runs(detection_pair(), METHODS, tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def lidar_runs(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The same of a pair on LiDAR scenes."""
    pytest.importorskip("mmdet3d", reason="the students are mmdetection3d's networks")
    from tests.pointcloud.small_runs import lidar_pair

    return trained_runs(lidar_pair(), ("teacher", "plain", "PointDistiller"), tmp_path_factory.mktemp("lidar"))


def trained_runs(pair: Any, methods: Sequence[str], folder: Path) -> SimpleNamespace:
    """`results`, `runs` and `records` of a pair's methods; the first is the teacher."""
    from limbeck.engine.config import TrainedTeacher, expand
    from limbeck.engine.record import RunRecord
    from limbeck.engine.run import RunOptions, execute

    options = RunOptions(folder / "runs", folder / "results", folder / "cache", threads=1, latency_ms=1.0)
    records: dict[str, RunRecord] = {}
    for method in methods:
        teacher = records.get("teacher")
        trained = {} if teacher is None else {"teacher": TrainedTeacher(f"run://{teacher.id}", teacher.student_sha256)}
        if method == "plain":
            trained = {}
        made = execute(expand(pair, method, 0, trained=trained), options)
        assert made is not None
        records[method] = made
    return SimpleNamespace(results=folder / "results", runs=folder / "runs", records=records)


def generator_pair(steps: int = 2, **changes: Any) -> Any:
    """Tiny diffusion models of digits: a teacher of 4 steps, students of fewer."""
    from limbeck.engine.config import PairConfig, parse

    asked = {
        split: dict(type="SampleRequests", classes=[str(k) for k in range(10)], count=count, split=split, name="digits")
        for split, count in (("val", 20), ("test", 40))
    }
    network = dict(type="UNet2DModel", block_out_channels=(8, 8), attention="none", norm_num_groups=4)
    student = dict(type="Denoiser", network=network, num_classes=10, image_size=8, sampler=dict(steps=steps))
    own = dict(guidance=1.5)
    links = dict(
        CD=dict(type="ConsistencyDistillation", teacher=["teacher", "target"], taps=[("x0", "x0")], target="target")
    )
    value = dict(
        task="image-generation",
        benchmark="toy-diffusion",
        pair=f"unet-{steps}step",
        data=dict(train=dict(type="Digits", split="train", limit=100), **asked, batch_size=50, eval_batch_size=25),
        adapter=dict(type="DiffusionAdapter"),
        metric=dict(
            type="GenerationMetric", primary="FD-digits", higher_is_better=False, options=dict(features="digits")
        ),
        student=student,
        teacher=student | dict(sampler=dict(steps=4, **own)),
        teacher_tolerance=1e6,
        recipe=dict(epochs=1, optimizer=dict(type="AdamW", lr=2e-3), param_scheduler=[]),
        methods={
            "FromTeacher": dict(links=[dict(type="FromTeacher")]),
            "CD": dict(
                task_weight=0.0,
                student=student | dict(sampler=dict(kind="consistency", steps=steps)),
                links=[links["CD"] | own],
                members=dict(target=dict(type="ema", of="student", momentum=0.95)),
            ),
        },
    )
    return parse(PairConfig, value | changes, "made-up pair")


@pytest.fixture(scope="session")
def generator_runs(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The same of students of two steps, CD's on two seeds."""
    pytest.importorskip("diffusers", reason="the networks and samplers are of diffusers")
    return trained_runs(
        generator_pair(), ("teacher", "plain", "FromTeacher", "CD"), tmp_path_factory.mktemp("generators")
    )


@pytest.fixture(scope="session")
def small_site(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A site with every kind of page whose text fields hold markup: `index`, `results` and `card`."""
    from tests.leaderboard.small_site import build_small_site

    return build_small_site(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    from tests.leaderboard.toy_runs import run_toys

    return run_toys(tmp_path_factory.mktemp("toys"))


@pytest.fixture
def toys(trained: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    """A copy of the toys to tamper with."""
    shutil.copytree(trained.records, tmp_path / "records")
    shutil.copytree(trained.runs, tmp_path / "runs")
    return SimpleNamespace(records=tmp_path / "records", runs=tmp_path / "runs")
