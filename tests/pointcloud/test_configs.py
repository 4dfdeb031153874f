"""The shipped pairs on point clouds: they build, distil, resume and end in valid records; weight zero is plain."""

from __future__ import annotations

import json
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmdet3d", reason="the pointcloud extra is not installed")

import limbeck.engine.hooks as hooks
from limbeck.engine.config import PairConfig, load_pair, parse, shipped_configs, with_overrides
from limbeck.engine.cost import count_parameters
from limbeck.engine.record import read_record, record_path
from limbeck.engine.registry import ADAPTERS, DATASETS, METHODS, METRICS, MODELS
from limbeck.engine.run import RunOptions, execute
from limbeck.engine.single import single_run
from limbeck.engine.weights import read_weights
from limbeck.errors import ConfigError

ROOT = Path(__file__).parents[2]
DESK = {"4x": 1.217, "8x": 0.616, "16x": 0.309}
SHORT = ["data.train.count=4", "data.val.count=2", "data.test.count=6", "data.batch_size=2", "data.eval_batch_size=3"]
SHORT += ["recipe.epochs=2", "teacher_recipe.epochs=1", "teacher.width=8", "student.width=4"]


def short(*overrides: str, name: str = "pointcloud/lidar_demo", **changes: Any) -> PairConfig:
    value = with_overrides(load_pair(name).model_dump(), [*SHORT, *overrides]) | changes
    return parse(PairConfig, value, name)


def options(folder: Path, **changes: Any) -> RunOptions:
    places = dict(out=folder / "runs", records=folder / "records", cache=folder / "cache")
    return RunOptions(**places | dict(threads=1, latency_ms=1.0) | changes)


def train(pair: PairConfig, method: str, folder: Path, **changes: Any) -> Any:
    return execute(single_run(pair, method, 0, folder), options(folder, **changes))


@pytest.mark.parametrize("name", DESK)
def test_desk_pairs_are_those_of_the_table(name):
    pair = load_pair(f"pointcloud/lidar_{name}")
    assert (pair.task, pair.benchmark) == ("3d-object-detection", "lidar-scenes")
    sizes = [count_parameters(MODELS.make(config)) / 1e6 for config in (pair.teacher, pair.student)]
    assert sizes == pytest.approx([4.835, DESK[name]], rel=0.01)
    assert (pair.recipe.epochs, pair.teacher_recipe.epochs if pair.teacher_recipe else 0) == (3, 16)
    assert set(pair.methods) == {"LabelKD", "BEVMimic", "CWD", "SparseKD", "PointDistiller"}
    assert pair.data.train["views"] == 4


def test_weights_on_the_desk_are_those_that_the_grid_chose_on_validation():
    said = json.loads((ROOT / "benchmarks" / "selection" / "lidar.json").read_text(encoding="utf-8"))
    assert said["config"] == "pointcloud/lidar_16x"
    for pair in ("4x", "8x", "16x"):
        methods = load_pair(f"pointcloud/lidar_{pair}").methods
        assert set(said["chosen"]) == set(methods)
        for name, choice in said["chosen"].items():
            best = max((r for r in said["runs"] if r["method"] == name), key=lambda r: r["value"])
            assert (choice["factor"], choice["weight"]) == (best["factor"], best["weight"]), name
            assert methods[name].links[-1][choice.get("option", "weight")] == choice["weight"], name


def test_every_pair_makes_its_parts():
    names = [name for name in shipped_configs() if name.startswith("pointcloud/lidar_")]
    assert names == [f"pointcloud/lidar_{n}" for n in ("16x", "4x", "8x", "demo")]
    for name in names:
        pair = load_pair(name)
        assert ADAPTERS.make(pair.adapter)
        assert METRICS.make({"type": pair.metric.type})
        ranges = {tuple(DATASETS.make(getattr(pair.data, s)).point_cloud_range) for s in ("train", "val", "test")}
        grids = {tuple(model["point_cloud_range"]) for model in (pair.teacher, pair.student)}
        assert ranges == grids
        for method in pair.methods.values():
            assert all(METHODS.make(link) for link in method.links)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """A folder with a short run of the demo's teacher."""
    folder = tmp_path_factory.mktemp("demo")
    record = train(short(), "teacher", folder, latency_ms=None)
    assert record.student.flops
    assert record.cost.student_latency_ms > 0
    return folder


def test_every_method_runs_to_a_valid_record(teacher):
    with warnings.catch_warnings():
        warnings.simplefilter("error", category=RuntimeWarning)
        pair = short(methods=load_pair("pointcloud/lidar_16x").model_dump()["methods"])
        for method in pair.method_names():
            made = train(pair, method, teacher)
            record = read_record(record_path(teacher / "records", made.id))
            assert record.status == "ok", method
            assert record.primary_metric == "bev_ap40"
            assert set(record.per_class["boxes"]) == {"Pedestrian", "Cyclist", "Car"}
            assert record.config["model"]["members"]["student"]["model"]["use_rotate_nms"] is True
            forwards = {"plain": 0, "BEVMimic": 8, "PointDistiller": 8}
            assert record.cost.teacher_forwards == forwards.get(method, 4), method
            (predicted,) = _predict(pair, teacher, record)
            assert predicted["boxes"].shape[0] == 3
            assert (predicted["pred"] >= 0).any()


def _predict(pair: PairConfig, folder: Path, record: Any) -> list[dict[str, torch.Tensor]]:
    """Boxes of a trained student, from its file, whatever their scores."""
    from limbeck.engine.weights import load_into

    model = MODELS.make(pair.student | dict(score_thr=0.0))
    load_into(model, folder / "runs" / record.id / "student.safetensors", sha256=record.student_sha256)
    adapter = ADAPTERS.make(pair.adapter)
    ready = adapter.preprocessor(model)(DATASETS.make(pair.data.test).__getitems__([0, 1, 2]), False)
    batch = adapter.batch(ready["inputs"], ready["data_samples"])
    with torch.no_grad():
        return adapter.predict(model.eval(), batch.inputs, batch)


def test_weight_zero_is_plain_training_bit_for_bit(teacher):
    zero = {
        "Graphs": dict(links=[dict(type="PointDistiller", weight=0.0)], cache=False),
        "Labels": dict(links=[dict(type="LabelKD", weight=0.0)]),
        "Logits": dict(links=[dict(type="SparseKD", weight=0.0)]),
        "Sure": dict(links=[dict(type="LabelKD", threshold=1.0)]),
    }
    pair = short(methods=zero)
    states = {}
    for method in pair.method_names():
        record = train(pair, method, teacher, records=None)
        states[method] = read_weights(teacher / "runs" / record.id / "student.safetensors")[0]
    for method in zero:
        assert all(torch.equal(states["plain"][key], states[method][key]) for key in states["plain"]), method


def test_resumed_run_ends_as_a_straight_one(teacher, tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if done == 3:
            raise Stopped

    monkeypatch.setattr(hooks, "REPORT_SECONDS", 0.0)
    run = single_run(short(), "PointDistiller", 1, teacher)
    run.model["members"]["teacher"]["weights"] = str(
        teacher / "runs" / run.model["members"]["teacher"]["weights"].removeprefix("run://") / "student.safetensors"
    )
    straight = execute(run, options(tmp_path / "a"))
    with suppress(Stopped):
        execute(run, options(tmp_path / "b", progress=stop))
    resumed = execute(run, options(tmp_path / "b"))
    assert straight is not None
    assert resumed is not None
    assert resumed.student_sha256 == straight.student_sha256


def test_cache_refuses_rows_of_a_batch(teacher):
    graphs = dict(Rows=dict(links=[dict(type="PointDistiller", num_voxels=32, kneighbours=4)]))
    with pytest.raises(ConfigError, match=r"tap 'voxel_encoder' of 'teacher' .* set cache=False for method Rows"):
        train(short(methods=graphs), "Rows", teacher)


def test_student_overfits_four_scenes():
    """All objects of four scenes are found: AP over every recall, in bird's-eye view at the loose overlaps, is 100."""
    pair = load_pair("pointcloud/lidar_demo")
    torch.manual_seed(0)
    adapter, model = ADAPTERS.make(pair.adapter), MODELS.make(pair.student | dict(width=16)).train()
    data = DATASETS.make(
        dict(type="LidarScenes", split="train", count=4, point_cloud_range=model.grid.point_cloud_range)
    )
    ready = adapter.preprocessor(model)(data.__getitems__(range(4)), True)
    batch = adapter.batch(ready["inputs"], ready["data_samples"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=100, pct_start=0.4)
    for _ in range(100):
        losses = adapter.forward(model, batch.inputs, batch, with_loss=True).losses
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 35)
        optimizer.step()
        schedule.step()
    metric = METRICS.make(dict(type="KittiMetric"))
    with torch.no_grad():
        metric.update(adapter.predict(model.eval(), batch.inputs, batch))
    assert metric.values()["bev_ap_exact"] > 90
