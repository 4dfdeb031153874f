"""mmdetection3d's detectors of points and voxels learn and predict on a CPU with the stand-ins for mmcv's operators.

They are the paper tier's configs with few points or a small grid.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from limbeck.engine.mmcv_ops import install
from limbeck.pointcloud.paper_models import pointpillars, pointrcnn, second

pytest.importorskip("mmcv", reason="needs the 'pointcloud' extra")
pytest.importorskip("mmdet3d", reason="needs the 'pointcloud' extra")

POINTS = 2048
EXTENT = [0, -10.24, -3, 20.48, 10.24, 1]
BOXES = torch.tensor(
    [[8.0, 3, -1.6, 0.8, 0.6, 1.73, 0.3], [12, -5, -1.6, 1.76, 0.6, 1.73, 1], [14, 4, -1.7, 3.9, 1.6, 1.56, 0.4]]
)


@pytest.fixture(autouse=True)
def _operators() -> None:
    install()


def build(config: dict[str, Any]) -> Any:
    from mmdet3d.registry import MODELS
    from mmdet3d.utils import register_all_modules
    from mmengine.config import ConfigDict
    from mmengine.registry import DefaultScope

    register_all_modules(init_default_scope=False)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet3d"):
        return MODELS.build(ConfigDict(config)).train()


def batch() -> dict[str, Any]:
    """Two clouds of scattered points, 150 of them inside each box."""
    from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
    from mmengine.structures import InstanceData

    draw, low, high = torch.Generator().manual_seed(3), torch.tensor(EXTENT[:3]), torch.tensor(EXTENT[3:])
    points, samples = [], []
    for shift in (0.0, 1.0):
        boxes = BOXES + torch.tensor([shift, 0, 0, 0, 0, 0, 0])
        cloud = torch.rand(POINTS, 4, generator=draw)
        cloud[:, :3] = low + cloud[:, :3] * (high - low)
        for i, box in enumerate(boxes):
            x, y, z = ((torch.rand(3, 150, generator=draw) - 0.5) * box[3:6, None]).unbind()
            cos, sin = box[6].cos(), box[6].sin()
            place = torch.stack([x * cos - y * sin, x * sin + y * cos, z + box[5] / 2], 1)
            cloud[150 * i : 150 * i + 150, :3] = box[:3] + place
        sample = Det3DDataSample(metainfo={"box_type_3d": LiDARInstance3DBoxes})
        sample.gt_instances_3d = InstanceData(bboxes_3d=LiDARInstance3DBoxes(boxes), labels_3d=torch.arange(3))
        points.append(cloud)
        samples.append(sample)
    return {"inputs": {"points": points}, "data_samples": samples}


def assert_learns(model: Any, steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        torch.manual_seed(0)  # samplers draw at random; the same draw makes losses comparable
        total, _ = model.parse_losses(model(**model.data_preprocessor(batch(), training=True), mode="loss"))
        optimizer.zero_grad()
        total.backward()
        if not losses:
            still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
            assert not still, f"parameters without gradient: {still}"
        optimizer.step()
        losses.append(total.item())
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0], losses


def assert_predicts(model: Any, limit: int) -> None:
    model.eval()
    with torch.no_grad():
        samples = model(**model.data_preprocessor(batch(), training=False), mode="predict")
    assert len(samples) == 2
    for sample in samples:
        found = sample.pred_instances_3d
        assert 0 < len(found) <= limit
        assert found.bboxes_3d.tensor.isfinite().all()
        assert ((found.scores_3d > 0) & (found.scores_3d <= 1)).all()
        assert set(found.labels_3d.tolist()) <= {0, 1, 2}


def small_pointrcnn(widths: Any) -> dict[str, Any]:
    config = pointrcnn(widths)
    config["backbone"]["num_points"] = (256, 128, 64, 16)
    config["roi_head"]["bbox_roi_extractor"]["roi_layer"]["num_sampled_points"] = 64
    config["roi_head"]["bbox_head"]["num_points"] = (32, 8, -1)
    # A net that knows nothing proposes no box near enough for the box branch to have a target.
    config["train_cfg"]["rcnn"]["sampler"].update(num=32, add_gt_as_proposals=True)
    for proposals in (config["train_cfg"]["rpn_proposal"], config["test_cfg"]["rpn"]):
        proposals["nms_cfg"].update(nms_pre=500, nms_post=64)
    return config


def test_pointrcnn_learns_and_predicts() -> None:
    model = build(small_pointrcnn("16x"))
    assert_learns(model, steps=3)
    assert_predicts(model, limit=64)


def test_pointrcnns_of_two_widths_see_the_same_points() -> None:
    found = []
    for widths, channels in (("8x", 45), ("16x", 32)):
        model = build(small_pointrcnn(widths))
        inputs = model.data_preprocessor(batch(), training=True)["inputs"]
        taps = model.neck(model.backbone(torch.stack(inputs["points"])))
        assert taps["fp_features"].shape == (2, channels, POINTS)
        found.append(model.backbone(torch.stack(inputs["points"]))["sa_indices"] + [taps["fp_xyz"]])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def on_a_small_grid(config: dict[str, Any], cells: tuple[int, int]) -> dict[str, Any]:
    """The config on `EXTENT`: `cells` a metre along the ground and over the height."""
    voxel_layer = config["data_preprocessor"]["voxel_layer"]
    side, height = 20.48 / cells[0], 4 / cells[1]
    voxel_layer.update(point_cloud_range=EXTENT, voxel_size=[side, side, height], max_voxels=(2000, 2000))
    if config["middle_encoder"]["type"] == "SparseEncoder":
        config["middle_encoder"]["sparse_shape"] = [cells[1] + 1, cells[0], cells[0]]
    else:
        config["voxel_encoder"].update(point_cloud_range=EXTENT, voxel_size=[side, side, height])
        config["middle_encoder"]["output_shape"] = [cells[0], cells[0]]
    for anchors in config["bbox_head"]["anchor_generator"]["ranges"]:
        anchors[:2], anchors[3:5] = EXTENT[:2], EXTENT[3:5]
    config["test_cfg"]["score_thr"] = 0.0
    return config


def test_pointpillars_learns_and_predicts() -> None:
    model = build(on_a_small_grid(pointpillars(0.25), (64, 1)))
    assert_learns(model, steps=3)
    assert_predicts(model, limit=50)


def test_second_learns_and_predicts_with_spconv() -> None:
    pytest.importorskip("spconv", reason="needs the 'pointcloud' extra")
    model = build(on_a_small_grid(second(0.5), (128, 40)))
    # Without the package mmdet3d takes mmcv's sparse convolutions, which have no stand-in.
    kinds = {type(m).__module__ for m in model.middle_encoder.modules() if "Conv3d" in type(m).__name__}
    assert kinds == {"spconv.pytorch.conv"}
    assert_learns(model, steps=3)
    assert_predicts(model, limit=50)
