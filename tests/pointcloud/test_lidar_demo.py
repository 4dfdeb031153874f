"""The demo's LiDAR pair: one family of networks, one budget, and records that show networks that learnt."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import pytest

from limbeck.engine.config import load_pair
from limbeck.engine.cost import count_parameters
from limbeck.engine.record import iter_records
from limbeck.engine.registry import MODELS
from limbeck.engine.suite import load_suite, plan

CONFIG = "pointcloud/lidar_demo"
RECORDS = Path(__file__).parents[2] / "results" / "lidar-scenes-demo"


def test_group_trains_one_teacher_and_every_method_with_three_seeds():
    jobs = [(job.method, job.seed) for job in plan(load_suite("demo")) if job.config == CONFIG]
    group = next(group for group in load_suite("demo").groups if group.config == CONFIG)
    methods = ["plain", *group.methods]
    assert set(methods) <= set(load_pair(CONFIG).method_names())
    assert jobs == [("teacher", 0), *((method, seed) for seed in range(3) for method in methods)]


def test_members_share_one_grid_and_methods_one_budget():
    pytest.importorskip("mmdet3d", reason="the networks are mmdetection3d's")
    pair = load_pair(CONFIG)
    teacher, student = (MODELS.make(config) for config in (pair.teacher, pair.student))
    assert teacher.grid == student.grid
    assert [len(stage) // 3 for stage in student.backbone.blocks] == [2, 3, 3]  # the one that halves, and `layers`
    assert count_parameters(teacher) > 8 * count_parameters(student)
    assert not pair.teacher_data
    assert all(method.task_weight == 1.0 and method.student is None for method in pair.methods.values())


def test_students_find_objects_and_the_teacher_more_of_them():
    if not RECORDS.is_dir():
        pytest.skip("results/lidar-scenes-demo has no records yet")
    records = [record for _, record in iter_records(RECORDS)]
    assert {record.id for record in records} == {job.id for job in plan(load_suite("demo")) if job.config == CONFIG}
    found = {m: [r.value for r in records if r.method == m] for m in ("teacher", "plain")}
    assert mean(found["plain"]) > 3
    assert found["teacher"][0] > mean(found["plain"]) + 5
