"""PointRCNN as a member: how its points are drawn, and that losses and boxes are mmdetection3d's own."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet3d", reason="the pointcloud extra is not installed")

from mmdet3d.models.detectors import PointRCNN
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.structures import InstanceData

from limbeck.engine.cost import count_flops
from limbeck.engine.registry import MODELS
from limbeck.engine.taps import tapped
from limbeck.errors import ConfigError
from limbeck.pointcloud.adapter import PointCloudAdapter
from limbeck.pointcloud.paper_models import pointpillars, pointrcnn
from limbeck.pointcloud.points import PointGrid
from limbeck.pointcloud.voxels import voxelize
from tests.pointcloud.networks import RANGE, batch, cloud, losses_of, raw

ADAPTER = PointCloudAdapter()
POINTS: dict[str, Any] = dict(point_cloud_range=RANGE, count=128, far=6.0)


def small(config: dict[str, Any]) -> dict[str, Any]:
    """PointRCNN of few points and proposals."""
    config = deepcopy(config)
    config["backbone"] |= dict(num_points=(32, 16, 8, 4), num_samples=((4, 8),) * 4)
    config["roi_head"]["bbox_roi_extractor"]["roi_layer"]["num_sampled_points"] = 16
    config["roi_head"]["bbox_head"] |= dict(num_points=(8, 4, -1), num_samples=(4, 4, 4))
    config["train_cfg"]["rcnn"]["sampler"]["num"] = 16
    for proposals in (config["train_cfg"]["rpn_proposal"], config["test_cfg"]["rpn"]):
        proposals["nms_cfg"].update(nms_pre=50, nms_post=16)
    return config


def network(seed: int = 0, **points: Any) -> Any:
    torch.manual_seed(seed)
    return MODELS.make(dict(type="mmdet3d", config=small(pointrcnn("16x")), points=POINTS | points))


# --- the draw ---


def rows(points: Any) -> list[tuple[float, ...]]:
    return sorted(map(tuple, np.asarray(points).tolist()))


@pytest.mark.parametrize("far", [0.0, 6.0, 100.0])
def test_far_points_are_kept_and_near_ones_drawn(far):
    points = cloud(600, 0) * torch.tensor([1.2, 1.2, 1.0, 1.0])  # some leave the range
    grid = PointGrid.covering(RANGE, 256, far)
    ((drawn,), coors, counts) = grid.cut(points, training=True)
    low, high = np.array(RANGE[:3], np.float32), np.array(RANGE[3:], np.float32)
    kept = [p for p in points.numpy() if all(low <= p[:3]) and all(p[:3] < high)]
    distant = [p for p in kept if np.linalg.norm(p[:3]) >= far]
    assert 256 < len(kept) < len(points)
    assert drawn.shape == (256, 4)
    assert len(set(rows(drawn))) == 256
    assert set(rows(drawn)) <= set(rows(kept))
    taken = set(rows(drawn)) & set(rows(distant))
    assert len(taken) == min(len(distant), 256)
    assert (coors.tolist(), counts.tolist()) == ([[0, 0, 0]], [256])


def test_the_draw_repeats_itself_and_follows_the_order_of_the_cloud():
    points, grid = cloud(600, 0), PointGrid.covering(RANGE, 256, 6.0)
    first, again = (grid.cut(points, training=False)[0] for _ in range(2))
    assert torch.equal(first, again)
    other = grid.cut(points[torch.randperm(len(points), generator=torch.Generator().manual_seed(1))], training=True)[0]
    assert rows(first[0]) != rows(other[0])


def test_few_points_come_again_and_none_is_left_out():
    near = cloud(300, 0)
    near = near[near[:, :3].norm(dim=1) < 6.0][:50]
    distant = cloud(300, 1)
    distant = distant[distant[:, :3].norm(dim=1) >= 6.0][:20]
    grid = PointGrid.covering(RANGE, 256, 6.0)
    for points in (torch.cat([near, distant]), near, distant):
        ((drawn,), _, counts) = grid.cut(points, training=False)
        assert set(rows(drawn)) == set(rows(points))
        assert counts.tolist() == [len(points)]
    times = [rows(grid.cut(torch.cat([near, distant]), training=False)[0][0]).count(row) for row in rows(distant)]
    assert times == [1] * 20


def test_ranges_and_clouds_that_hold_nothing_are_said():
    with pytest.raises(ConfigError, match="point_cloud_range has 6 numbers"):
        PointGrid.covering((0, 0, 0), 256, 6.0)
    with pytest.raises(ConfigError, match="max_points"):
        PointGrid.covering(RANGE, 0, 6.0)
    model, data = network(), raw()
    data["inputs"][1] = data["inputs"][1] + 100
    given = batch(model, data)
    with pytest.raises(ConfigError, match="no point in the range"):
        losses_of(model, given)


# --- the network ---


def theirs(model: Any, given: Any) -> tuple[dict[str, Any], list[Any]]:
    """A batch as mmdetection3d's own PointRCNN takes it; clouds without objects have none."""
    samples = []
    for boxes, labels in zip(given.targets.boxes, given.targets.labels):
        sample = Det3DDataSample(metainfo=dict(box_type_3d=LiDARInstance3DBoxes))
        sample.gt_instances_3d = InstanceData(bboxes_3d=LiDARInstance3DBoxes(boxes.clone()), labels_3d=labels)
        samples.append(sample)
    return dict(points=list(given.inputs.voxels)), samples


class Plain(PointRCNN):
    """A detector's layers run by mmdetection3d's own code."""

    def __init__(self, model: Any) -> None:
        torch.nn.Module.__init__(self)
        for name in ("backbone", "neck", "rpn_head", "roi_head", "train_cfg", "test_cfg"):
            setattr(self, name, getattr(model, name))


def with_objects() -> dict[str, Any]:
    data = raw()
    data["inputs"].pop(1)
    for name in ("boxes", "labels"):
        data["data_samples"][name].pop(1)
    data["data_samples"] |= dict(ids=torch.tensor([7, 4]), views=torch.zeros(2, dtype=torch.int64))
    return data


def test_losses_and_boxes_are_mmdetection3ds():
    model = network()
    given = batch(model, with_objects())
    torch.manual_seed(0)  # proposals are sampled
    mine = losses_of(model.train(), given)
    torch.manual_seed(0)
    wanted = Plain(model).train().loss(*theirs(model, given))
    assert mine.keys() == {f"rpn_head.{n}" for n in ("bbox_loss", "semantic_loss")} | {
        f"roi_head.loss_{n}" for n in ("cls", "bbox", "corner")
    }
    assert sum(mine.values()).item() == pytest.approx(sum(v.item() for v in wanted.values()))
    with torch.no_grad():
        (found,) = ADAPTER.predict(model.eval(), given.inputs, given)
        samples = Plain(model).eval().predict(*theirs(model, given))
    for boxes, scores, pred, sample in zip(found["boxes"], found["scores"], found["pred"], samples, strict=True):
        one = sample.pred_instances_3d
        order = one.scores_3d.argsort(descending=True, stable=True)
        count = len(order)
        assert (pred[count:] == -1).all()
        assert torch.equal(boxes[:count], one.bboxes_3d.tensor[order])
        assert torch.equal(scores[:count], one.scores_3d[order])
        assert torch.equal(pred[:count], one.labels_3d[order])


def test_clouds_without_objects_are_learned_from():
    model = network().train()
    data = with_objects()
    data["inputs"] = data["inputs"][:1] * 2
    one = {name: data["data_samples"][name][:1] for name in ("boxes", "labels")}
    none = dict(boxes=[torch.zeros(0, 7)], labels=[torch.zeros(0, dtype=torch.int64)])
    found = {}
    for case, parts in (("both", (one, one)), ("one", (one, none)), ("none", (none, none))):
        data["data_samples"] |= {name: parts[0][name] + parts[1][name] for name in one}
        torch.manual_seed(0)
        found[case] = losses_of(model, batch(model, data))
        assert all(torch.isfinite(value) for value in found[case].values())
    assert all(found["none"][n] == 0 for n in found["none"] if n != "roi_head.loss_cls")
    # As many points in boxes again, by whose number the loss over all points is divided.
    assert found["one"]["rpn_head.semantic_loss"] > found["both"]["rpn_head.semantic_loss"]
    torch.stack(list(found["none"].values())).sum().backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in model.roi_head.parameters())


def test_only_what_is_tapped_runs_without_losses():
    model = network().eval()
    given = batch(model, with_objects())
    for tap, runs in ((None, 0), ("backbone.SA_modules.0", 0), ("rpn_head.cls_layers", 1)):
        calls: list[int] = []
        handle = model.rpn_head.register_forward_pre_hook(lambda _m, _i, calls=calls: calls.append(1))
        with torch.no_grad(), tapped(model, [tap] if tap else []) as store:
            found = ADAPTER.forward(model, given.inputs, given, with_loss=False)
            assert (tap in store) == (tap is not None)
            features = found.offers["fp_features"]()
        handle.remove()
        assert features.shape == (2, 32, 128)
        assert len(calls) == runs


def test_members_of_two_widths_see_the_same_points_and_others_their_own():
    model = network()
    given = batch(model, with_objects())
    torch.manual_seed(0)
    wide = MODELS.make(dict(type="mmdet3d", config=small(pointrcnn("8x")), points=POINTS))
    assert ADAPTER.member_inputs(given, model, wide) is given.inputs
    fewer = ADAPTER.member_inputs(given, model, network(count=64))
    assert fewer.voxels.shape == (2, 64, 4)
    assert torch.equal(fewer.voxels, voxelize(given.inputs.points, fewer.grid).voxels)


def test_outputs_of_both_stages_are_measured():
    model = network().eval()
    given = batch(model, with_objects())
    with torch.no_grad():
        shapes = [tuple(part.shape) for part in model(given.inputs)]
    assert shapes == [(2, 128, 8), (2, 128, 3), (shapes[2][0], 1), (shapes[2][0], 7)]
    assert 0 < shapes[2][0] <= 32
    assert count_flops(model, given.inputs) > 0
    assert not model.rpn_head._forward_hooks


def test_configs_that_name_something_else_are_refused():
    for config, points, said in (
        (dict(type="VoteNet"), None, "got type 'VoteNet'"),
        (pointpillars(0.25), POINTS, "points .* are for PointRCNN"),
        (pointrcnn("16x"), None, "points .* are for PointRCNN, which needs them"),
    ):
        with pytest.raises(ConfigError, match=said):
            MODELS.make(dict(type="mmdet3d", config=config, points=points))
