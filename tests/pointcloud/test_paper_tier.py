"""The paper tier: every published pair builds at full size and does one step on clouds in KITTI's layout."""

from __future__ import annotations

import math
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("mmdet3d", reason="the pointcloud extra is not installed")

from mmengine.registry import PARAM_SCHEDULERS

from limbeck.engine.config import PairConfig, RunConfig, expand, load_pair, parse, shipped_configs
from limbeck.engine.distiller import Distiller
from limbeck.engine.registry import ADAPTERS, DATASETS, METHODS, METRICS, MODELS
from limbeck.engine.run import RunOptions, _schedulers, execute
from limbeck.engine.runner import build_optim_wrapper
from limbeck.engine.taps import check_taps
from limbeck.engine.weights import hash_state
from limbeck.pointcloud.voxels import voxelize
from tests.pointcloud.kitti_folder import write_kitti
from tests.pointcloud.test_points import small

PAPER = [name for name in shipped_configs() if name.startswith("pointcloud/paper_")]
KINDS = {name: name.removeprefix("pointcloud/paper_kitti_").rpartition("_")[0] for name in PAPER}
PILLARS = "pointcloud/paper_kitti_pointpillars_16x"
EXTENT = (0.0, -7.68, -3.0, 15.36, 7.68, 1.0)


@cache
def pair_of(name: str) -> PairConfig:
    return load_pair(name)


@pytest.fixture(autouse=True)
def _spconv(request: pytest.FixtureRequest) -> None:
    if "second" in request.node.name:
        pytest.importorskip("spconv", reason="the pointcloud extra is not installed")


# --- what is in the tier, and for which figures ---


def test_the_tier_has_every_pair():
    sizes = {"pointpillars": ("16x", "4x"), "pointrcnn": ("16x", "8x"), "second": ("16x", "4x")}
    names = [f"pointcloud/paper_kitti_{kind}_{size}" for kind, both in sizes.items() for size in both]
    assert names == PAPER
    further = {name: set(pair_of(name).methods) - {"PointDistiller"} for name in PAPER}
    halves = {"PointDistiller-LD", "PointDistiller-RL"}
    assert {name: found for name, found in further.items() if found} == {PILLARS.replace("16x", "4x"): halves}


@pytest.mark.parametrize("name", PAPER)
def test_figures_are_of_methods_of_the_pair_and_have_a_source(name):
    pair = pair_of(name)
    assert pair.task == "3d-object-detection"
    assert (pair.metric.type, pair.metric.primary) == ("KittiMetric", "bev_ap40_strict")
    assert {"teacher", "plain", *pair.methods} == set(pair.reported)
    assert all(60 < value < 80 for value in pair.reported.values())
    assert pair.reported["plain"] == min(pair.reported.values())
    assert "arXiv 2205.11098" in pair.reported_source
    assert all(method in pair.reported_source for method in pair.reported)
    text = Path(shipped_configs()[name]).read_text(encoding="utf-8").split('"""')[1]
    assert all(f"{value:.2f}" in text for value in pair.reported.values())


@pytest.mark.parametrize("name", PAPER)
def test_every_method_expands_to_a_run_of_the_published_schedule(name):
    pair, kind = pair_of(name), KINDS[name]
    for method in ("teacher", *pair.method_names()):
        run = expand(pair, method, 0)
        assert run.id.startswith(f"kitti/{pair.pair}/{method.lower()}")
        frozen = {key for key, member in run.model["members"].items() if member["type"] == "frozen"}
        assert frozen == (set() if method in ("teacher", "plain") else {"teacher"})
        rate, epochs, clip = dict(second=(1.8e-3, 80, 10), pointpillars=(1e-3, 160, 35)).get(kind, (1e-3, 160, 10))
        betas = (0.95, 0.85) if kind == "pointrcnn" else (0.95, 0.99)
        assert run.recipe.optimizer == dict(type="AdamW", lr=rate, betas=betas, weight_decay=0.01)
        assert (run.recipe.epochs, run.recipe.clip_grad) == (epochs, dict(max_norm=clip, norm_type=2))
        assert (run.data.batch_size, run.recipe.selection) == (16 if kind == "pointrcnn" else 48, "last")
        assert run.data.train["augment"] == dict(flip=0.5, turn=0.78539816, scale=(0.95, 1.05))
    METRICS.make(dict(type=pair.metric.type))


@pytest.mark.parametrize("name", [PILLARS, PILLARS.replace("pointpillars", "second")])
def test_rate_and_momentum_go_up_and_down_along_cosines(name):
    """Against the formula, step by step, of runs with 3 batches an epoch; mmengine is up to a step late at the top."""
    recipe, batches = pair_of(name).recipe, 3
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], **{k: v for k, v in recipe.optimizer.items() if k != "type"})
    made = [
        PARAM_SCHEDULERS.build(config, default_args=dict(optimizer=optimizer, epoch_length=batches))
        for config in _schedulers(recipe.param_scheduler, recipe.epochs) or []
    ]
    total, base = recipe.epochs * batches, recipe.optimizer["lr"]
    top = round(0.4 * total)

    def along(start: float, end: float, share: float) -> float:
        return end + (start - end) * (1 + math.cos(math.pi * share)) / 2

    for step in range(total):
        up, down = min(step / top, 1.0), max(step - top, 0) / (total - top)
        rate = along(base, 10 * base, up) if step <= top else along(10 * base, 1e-4 * base, down)
        beta = along(0.95, 0.85, up) if step <= top else along(0.85, 0.95, down)
        group = optimizer.param_groups[0]
        assert group["lr"] == pytest.approx(rate, abs=0.004 * base)
        assert group["betas"] == pytest.approx((beta, 0.99), abs=1e-3)
        optimizer.step()
        for scheduler in made:
            scheduler.step()


# --- the networks ---


@pytest.mark.parametrize("name", PAPER)
def test_full_size_networks_have_every_tap_and_the_range_of_their_data(name):
    pair = pair_of(name)
    models = {member: MODELS.make(getattr(pair, member)) for member in ("teacher", "student")}
    assert models["teacher"].grid == models["student"].grid
    assert all(model.num_classes == 3 for model in models.values())
    grid, kind = models["student"].grid, KINDS[name]
    assert grid.shape == dict(pointpillars=(1, 496, 432), second=(40, 1600, 1408), pointrcnn=(1, 1, 1))[kind]
    assert grid.max_points == dict(pointpillars=32, second=5, pointrcnn=16384)[kind]
    splits = [getattr(pair.data, split) for split in ("train", "val", "test")]
    assert {tuple(split["point_cloud_range"]) for split in splits} == {grid.point_cloud_range}
    offers = ADAPTERS.make(pair.adapter).offers
    for spec in pair.methods.values():
        link = METHODS.make(spec.links[0])
        for side, member in enumerate(models):
            check_taps(models[member], [taps[side] for taps in link.taps], offers, member)


# --- one step ---


def reduced(model: dict[str, Any]) -> dict[str, Any]:
    """A model config within 15 m of the sensor: 48 × 48 pillars, 32 × 32 × 40 voxels, or 128 points; few voxels."""
    found = deepcopy(model)
    config = found["config"]
    if config["type"] == "PointRCNN":
        return found | dict(config=small(config), points=dict(point_cloud_range=EXTENT, count=128, far=10.0))
    sparse = config["middle_encoder"]["type"] == "SparseEncoder"
    cells, height, most = (32, 0.1, 100) if sparse else (48, 4.0, 400)
    size = [15.36 / cells, 15.36 / cells, height]
    config["data_preprocessor"]["voxel_layer"].update(
        point_cloud_range=list(EXTENT), voxel_size=size, max_voxels=(most, most)
    )
    if sparse:
        config["middle_encoder"]["sparse_shape"] = [41, cells, cells]
    else:
        config["voxel_encoder"].update(point_cloud_range=list(EXTENT), voxel_size=size)
        config["middle_encoder"]["output_shape"] = [cells, cells]
    for anchors in config["bbox_head"]["anchor_generator"]["ranges"]:
        anchors[:2], anchors[3:5] = EXTENT[:2], EXTENT[3:5]
    return found


@pytest.fixture(scope="module")
def kitti(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kitti(tmp_path_factory.mktemp("kitti"), train=5, val=2)


def where(root: Path) -> dict[str, Any]:
    return dict(root=str(root), val_size=2, point_cloud_range=EXTENT)


def settled(config: dict[str, Any], clouds: list[torch.Tensor]) -> nn.Module:
    """A teacher whose batch norms know these clouds, so that its features are not next to nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = MODELS.make(config)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(voxelize(clouds, model.grid))
    return model.eval()


def distiller(pair: PairConfig, clouds: list[torch.Tensor]) -> Distiller:
    """The links of all methods in one model."""
    runs = [expand(pair, method, 0) for method in pair.methods]
    config = {key: value for key, value in runs[0].model.items() if key not in ("type", "links")}
    for key, member in config["members"].items():
        model = reduced(member["model"])
        frozen = key == "teacher"
        member.update(dict(model=settled(model, clouds), initial_weights=True) if frozen else dict(model=model))
    return Distiller(**config, links=[link for run in runs for link in run.model["links"]])


@pytest.mark.parametrize("name", PAPER)
def test_all_methods_of_a_pair_do_one_step(name, kitti):
    torch.manual_seed(0)
    pair = pair_of(name)
    alone = dict(gt_sampling=None, object_noise=None)  # so that the second cloud has no object
    raw = DATASETS.make(pair.data.train | where(kitti) | alone).__getitems__([0, 1])
    model = distiller(pair, raw["inputs"])
    ready: Any = model.data_preprocessor(raw, True)
    batch = model.adapter.batch(ready["inputs"], ready["data_samples"])
    assert [len(boxes) for boxes in batch.targets.boxes] == [3, 0]
    wrapper = build_optim_wrapper(model, model.links, pair.recipe)
    student: Any = model.members["student"]
    before = hash_state(student.state_dict())
    terms = model.train().loss(batch)
    assert all(bool(torch.isfinite(value)) for value in terms.values())
    first = "backbone.SA_modules.0.mlps.0.layer0.conv" if KINDS[name] == "pointrcnn" else "voxel_encoder"
    first = "middle_encoder.conv_input.0" if KINDS[name] == "second" else first
    reached = next(student.get_submodule(first).parameters())
    for index, link in enumerate(model.methods()):
        taught = [value for key, value in terms.items() if key.startswith(f"{link.name}{index or ''}.loss_")]
        (gradient,) = torch.autograd.grad(torch.stack(taught).sum(), reached, retain_graph=True)
        assert torch.isfinite(gradient).all()
        assert gradient.abs().max() > 0, link.name
    wrapper.update_params(model.parse_losses(terms)[0])
    assert hash_state(student.state_dict()) != before
    assert all(torch.isfinite(p).all() for p in student.parameters())
    assert hash_state(model.frozen["teacher"].state_dict()) == model.frozen_hashes["teacher"]
    assert all(p.grad is None for p in model.frozen["teacher"].parameters())


@pytest.mark.parametrize("name", PAPER)
def test_clouds_are_filled_with_objects_as_published(name, kitti):
    cars, others, least = {"pointpillars": (15, 15, 5), "second": (12, 6, 10), "pointrcnn": (20, 15, 5)}[KINDS[name]]
    pair = pair_of(name)
    data = DATASETS.make(pair.data.train | where(kitti))
    assert data.gt_sampling.counts == dict(Car=cars, Pedestrian=others, Cyclist=others)
    assert data.gt_sampling.least == dict(Car=5, Pedestrian=least, Cyclist=least)
    assert (data.object_noise is not None) == (KINDS[name] != "pointpillars")
    data.set_epoch(0)
    found = data.__getitems__([0, 1])["data_samples"]
    assert len(found["boxes"][1]) > 0  # which has no object of its own
    assert [len(labels) for labels in found["labels"]] == [len(boxes) for boxes in found["boxes"]]
    for split in (pair.data.val, pair.data.test):
        assert not {"gt_sampling", "object_noise"} & set(split)


# --- from files to a record ---


@pytest.mark.parametrize("name", [PILLARS, PILLARS.replace("pointpillars", "pointrcnn")])
def test_a_small_kitti_gives_a_record(name, kitti, tmp_path):
    run = expand(pair_of(name), "plain", 0).model_dump()
    for split in ("train", "val", "test"):
        run["data"][split] |= where(kitti)
    run["data"] |= dict(batch_size=3, num_workers=0)
    for scheduler in run["recipe"]["param_scheduler"]:
        scheduler |= {key: value // 32 for key, value in scheduler.items() if key in ("begin", "end", "T_max")}
    run["recipe"] |= dict(epochs=5)
    run["model"]["members"]["student"]["model"] = reduced(run["model"]["members"]["student"]["model"])
    record = execute(parse(RunConfig, run, "test"), RunOptions(out=tmp_path / "out", latency_ms=1.0))
    assert record is not None
    assert "bev_ap40_strict" in record.metrics
    assert record.metrics["ap40_ceiling"] > 0
    assert sum(record.per_class["boxes"].values()) > 0
