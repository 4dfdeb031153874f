"""PointPillars of any width: parameters, taps and grids are those of the papers' tables; SECOND builds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("mmdet3d", reason="the pointcloud extra is not installed")

from limbeck.engine.cost import count_flops, count_parameters, median_latency
from limbeck.engine.registry import MODELS
from limbeck.engine.taps import tapped
from limbeck.engine.weights import hash_state
from limbeck.errors import ConfigError, UnknownName
from limbeck.pointcloud.adapter import PointCloudAdapter
from limbeck.pointcloud.models import ANCHORS
from limbeck.pointcloud.voxels import Voxels, voxelize
from tests.pointcloud.networks import RANGE, TINY, batch, cloud, losses_of, network

WIDTHS = {  # parameters in millions; channels of the three stages; of a branch of the neck
    64: (4.835, (64, 128, 256), 128),
    32: (1.217, (32, 64, 128), 64),
    22.63: (0.616, (23, 45, 91), 45),
    16: (0.309, (16, 32, 64), 32),
    8: (0.079, (8, 16, 32), 16),
}


def desk(width: float, **changes: Any) -> Any:
    return MODELS.make(dict(type="PointPillarsDetector", width=width, **changes))


@pytest.mark.parametrize("width", WIDTHS)
def test_parameters_and_taps_are_the_tables(width):
    millions, stages, branch = WIDTHS[width]
    model = desk(width).eval()
    assert count_parameters(model) == pytest.approx(millions * 1e6, rel=0.01)
    example = PointCloudAdapter().example(model)
    names = ["voxel_encoder", "middle_encoder", *(f"backbone[{i}]" for i in range(3)), "neck[0]", "neck"]
    names += [f"backbone.blocks.{i}" for i in range(3)] + [f"neck.deblocks.{i}" for i in range(3)]
    names += ["bbox_head.conv_cls", "bbox_head.conv_reg", "bbox_head.conv_dir_cls"]
    with torch.no_grad(), tapped(model, names) as store:
        outputs = model(example.inputs)
    shapes = {name: tuple(store[name].shape) for name in names}
    maps = [(2, c, 64 // 2**i, 64 // 2**i) for i, c in enumerate(stages)]
    assert shapes["voxel_encoder"] == (len(example.inputs.coors), stages[0])
    assert shapes["middle_encoder"] == (2, stages[0], 128, 128)
    assert [shapes[f"backbone[{i}]"] for i in range(3)] == [shapes[f"backbone.blocks.{i}"] for i in range(3)] == maps
    assert [shapes[f"neck.deblocks.{i}"] for i in range(3)] == [(2, branch, 64, 64)] * 3
    assert shapes["neck[0]"] == shapes["neck"] == (2, 3 * branch, 64, 64)
    heads = [(2, 18, 64, 64), (2, 42, 64, 64), (2, 12, 64, 64)]
    assert [shapes[f"bbox_head.{name}"] for name in ("conv_cls", "conv_reg", "conv_dir_cls")] == heads
    assert [tuple(part.shape) for part in outputs] == heads


def test_multiply_adds_of_the_desk_are_the_tables():
    model = desk(16)
    flops = count_flops(model, PointCloudAdapter().example(model).inputs)
    assert flops / 2e9 == pytest.approx(0.19, rel=0.05)


def test_latency_is_of_one_cloud():
    model = network()
    assert median_latency(model, PointCloudAdapter().example(model).inputs, blocks=1) > 0


@pytest.mark.parametrize("axis", ["x", "y"])
def test_grid_that_stages_do_not_halve_is_refused(axis):
    low, high = ((0, -5.12), (10.24 - 0.64, 5.12)) if axis == "x" else ((0, -5.12), (10.24, 5.12 - 0.32))
    with pytest.raises(ConfigError, match=r"pillars along x and y, 1 along z; the first two must be multiples of 8"):
        network(point_cloud_range=(*low, -3, *high, 1))


def test_other_bad_grids_are_refused():
    for changes, said in (
        (dict(voxel_size=(0.3, 0.32, 4)), "along x is no whole number of voxels of 0.3"),
        (dict(voxel_size=(0.32, 0.32, 2)), "2 along z; .* the last 1"),
        (dict(voxel_size=(0.32, 0, 4)), "along y is no whole number"),
        (dict(point_cloud_range=(0, 0, 1)), "point_cloud_range of 6 numbers"),
        (dict(max_points=0), "max_points and max_voxels are 1 or more"),
        (dict(width=0.1), "leaves no channel"),
        (dict(num_classes=2), "2 classes and 3 anchors"),
        (dict(layers=(1, 2)), r"layers of PointPillars are three numbers of 0 or more, .* got \(1, 2\)"),
    ):
        with pytest.raises(ConfigError, match=said):
            network(**changes)
    with pytest.raises(UnknownName, match="score_thr"):
        network(score_threshold=0.2)
    with pytest.raises(UnknownName, match="anchors"):
        network(anchors="kiti")


def test_number_of_classes_is_that_of_the_anchors():
    model = network(num_classes=1, anchors=ANCHORS["kitti"][2:])
    assert [part.shape[1] for part in model(batch(model).inputs)] == [2, 14, 4]


def test_every_object_has_an_anchor_on_the_desks_cells():
    """As far from anchors as can be, and as large as its class's; with KITTI's thresholds a pedestrian has none."""
    positives = {}
    for anchors in ("coarse", "kitti"):
        model = network(anchors=anchors)
        head: Any = model.bbox_head
        boxes = torch.tensor([[5.12, 0.0, one["z"], *one["size"], 0.0] for one in ANCHORS[anchors]])
        data = dict(boxes=[boxes], labels=[torch.arange(3)], ids=torch.zeros(1, dtype=torch.int64))
        given = batch(model, dict(inputs=[cloud(300, 0)], data_samples=data))
        (found,) = head.anchor_target_3d(
            head.get_anchors([(16, 16)], [{}], device="cpu"),
            PointCloudAdapter()._instances(model, given.inputs, given),
            [{}],
            num_classes=3,
            label_channels=3,
            sampling=head.sampling,
        )[0]
        positives[anchors] = [int((found == label).sum()) > 0 for label in range(3)]
    assert positives == {"coarse": [True] * 3, "kitti": [False, False, True]}


def test_weights_follow_the_seed_and_reach_every_layer():
    assert hash_state(network(1).state_dict()) == hash_state(network(1).state_dict())
    assert hash_state(network(1).state_dict()) != hash_state(network(2).state_dict())
    model = network().train()
    torch.stack(list(losses_of(model, batch(model)).values())).sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


def test_detector_leaves_its_input_alone():
    """mmdetection3d's own pillar encoder moves the points that it is given."""
    model = network()
    given: Voxels = batch(model).inputs
    before = given.voxels.clone()
    first, second = model(given), model(given)
    assert torch.equal(given.voxels, before)
    plain = model.train(False)
    assert all(torch.equal(a, b) for a, b in zip(plain(given), plain(given)))
    assert len(first) == len(second) == 3


def test_rotated_suppression_keeps_cars_abreast():
    """Two cars 2 m apart along x that look along y: with yaw set to 0 they overlap."""
    counts = {}
    for rotated in (True, False):
        model: Any = network(use_rotate_nms=rotated, score_thr=0.5).eval()
        head = model.bbox_head
        priors = head.prior_generator.grid_anchors([(16, 16)], device="cpu")[0].reshape(-1, 7)
        logits = torch.full((len(priors), 3), -9.0)
        for x in (2.24, 4.8):
            along_y = (priors[:, 6] > 1) & (priors[:, 3] > 3)
            near = ((priors[:, :2] - torch.tensor([x, 0.32])).norm(dim=1) + 9 * ~along_y).argmin()
            logits[near, 2] = 3.0
        maps = [
            logits.reshape(1, 16, 16, 18).permute(0, 3, 1, 2),
            torch.zeros(1, 42, 16, 16),
            torch.zeros(1, 12, 16, 16),
        ]
        from mmdet3d.structures import LiDARInstance3DBoxes

        metas = [dict(box_type_3d=LiDARInstance3DBoxes)]
        (found,) = head.predict_by_feat(*([part] for part in maps), batch_input_metas=metas)
        counts[rotated] = len(found.scores_3d)
    assert counts == {True: 2, False: 1}


# --- voxels ---


def test_slices_of_voxels_are_those_of_the_clouds_alone():
    grid = network().grid
    clouds = [cloud(200, 1), cloud(0, 2), cloud(90, 3)]
    whole = voxelize(clouds, grid)
    assert len(whole) == 3
    for part in (slice(0, 1), slice(1, 2), slice(1, 3), slice(3, 4), slice(None)):
        own = whole[part]
        if not clouds[part]:
            assert (len(own), len(own.coors)) == (0, 0)
            continue
        alone = voxelize(clouds[part], grid)
        for name in ("voxels", "num_points", "coors"):
            assert torch.equal(getattr(own, name), getattr(alone, name))
    assert whole.coors[:, 0].unique().tolist() == [0, 2]


def test_voxels_keep_the_first_points_of_a_pillar_and_the_first_pillars():
    grid = network(max_points=2, max_voxels=(3, 5)).grid
    x = torch.arange(6) * 0.32 + 0.1
    points = torch.stack([x, torch.full((6,), 0.1), torch.zeros(6), torch.linspace(0, 1, 6)], 1).repeat(3, 1)
    points[-1] = torch.tensor([11.0, 0.0, 0.0, 0.0])  # out of range
    training, evaluation = (voxelize([points], grid, training=flag) for flag in (True, False))
    assert training.coors[:, 3].tolist() == [0, 1, 2]
    assert evaluation.coors[:, 3].tolist() == [0, 1, 2, 3, 4]
    assert evaluation.num_points.tolist() == [2] * 5
    assert torch.equal(evaluation.voxels[0], points[[0, 6]])
    assert evaluation.coors[:, 2].unique().tolist() == [16]


def test_clouds_without_a_voxel_pass_through():
    model = network().eval()
    given = voxelize([cloud(200, 1), cloud(0, 2)], model.grid)
    with torch.no_grad():
        both, alone = model(given), model(given[:1])
        nothing = model(given[1:])
    for two, one, none in zip(both, alone, nothing, strict=True):
        torch.testing.assert_close(two[:1], one)
        torch.testing.assert_close(two[1:], none)


def test_second_is_built_with_its_published_widths():
    pytest.importorskip("spconv", reason="the pointcloud extra is not installed")
    counts = [count_parameters(MODELS.make(dict(type="SECONDDetector", width=width))) / 1e6 for width in (128, 64, 32)]
    assert counts == pytest.approx([5.3, 1.4, 0.4], abs=0.07)
    with pytest.raises(ConfigError, match="SECOND has 1408 × 1600 voxels along x and y and 20 along z"):
        MODELS.make(dict(type="SECONDDetector", voxel_size=(0.05, 0.05, 0.2)))


def test_range_is_that_of_the_config():
    assert network().grid.point_cloud_range == RANGE
    assert network().grid.shape == (1, 32, 32)
    assert TINY["max_voxels"] == network().grid.max_voxels[0]
