"""Detectors of mmdet and mmdet3d train and predict on a CPU with the operators that `mmcv_ops.install` provides."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from limbeck.engine.mmcv_ops import install

pytest.importorskip("mmcv", reason="needs the 'detection' extra")

CLASSES = 3
IMAGE = 96
RANGE = [0.0, -6.4, -3.0, 12.8, 6.4, 1.0]
WIDE = {"start_level": 1, "num_outs": 5}


@pytest.fixture(autouse=True)
def _operators():
    install()


def train(model: Any, batch: dict, *, steps: int = 2, lr: float = 1e-3) -> list[float]:
    """The loss on one batch before each step of Adam and after the last."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    losses = []
    for step in range(steps + 1):
        torch.manual_seed(0)  # samplers draw at random; the same draw makes losses comparable
        total, _ = model.parse_losses(model(**model.data_preprocessor(batch, training=True), mode="loss"))
        losses.append(total.item())
        if step < steps:
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
    still = [name for name, p in model.named_parameters() if name in before and torch.equal(p, before[name])]
    still = [name for name in still if ".scales." not in name]  # GFL has one a level; small images leave levels empty
    assert not still, f"parameters that never moved: {still}"
    return losses


def predict(model: Any, batch: dict) -> list[Any]:
    model.eval()
    with torch.no_grad():
        return model(**model.data_preprocessor(batch, training=False), mode="predict")


def assert_learns(losses: list[float]) -> None:
    assert all(math.isfinite(x) for x in losses)
    assert losses[-1] < losses[0], losses


def image_model(config: dict) -> Any:
    pytest.importorskip("mmdet", reason="needs the 'detection' extra")
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine.config import ConfigDict

    register_all_modules(init_default_scope=False)
    common = {
        "data_preprocessor": {"type": "DetDataPreprocessor", "mean": [0.0] * 3, "std": [255.0] * 3},
        "backbone": {"type": "ResNet", "depth": 18, "base_channels": 16, "frozen_stages": -1, "norm_eval": False},
    }
    torch.manual_seed(0)
    model = MODELS.build(ConfigDict({**common, **config, "_scope_": "mmdet"}))
    model.init_weights()
    return model.train()


def image_batch() -> dict:
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    draw = torch.Generator().manual_seed(3)
    inputs, samples = [], []
    for boxes in ([[8.0, 8, 40, 40], [50, 30, 90, 90]], [[20.0, 4, 84, 70]]):
        sample = DetDataSample(metainfo={"img_shape": (IMAGE, IMAGE), "ori_shape": (IMAGE, IMAGE)})
        sample.set_metainfo({"scale_factor": (1.0, 1.0), "pad_shape": (IMAGE, IMAGE)})
        sample.gt_instances = InstanceData(bboxes=torch.tensor(boxes), labels=torch.arange(len(boxes)))
        inputs.append(torch.randint(0, 256, (3, IMAGE, IMAGE), generator=draw, dtype=torch.uint8))
        samples.append(sample)
    return {"inputs": inputs, "data_samples": samples}


def assert_image_predictions(samples: list[Any], limit: int) -> None:
    assert len(samples) == 2
    for sample in samples:
        found = sample.pred_instances
        assert 0 < len(found) <= limit
        assert found.bboxes.shape == (len(found), 4)
        assert found.bboxes.isfinite().all()
        assert found.bboxes.min() >= 0
        assert found.bboxes.max() <= IMAGE
        assert ((found.scores >= 0) & (found.scores <= 1)).all()
        assert (found.scores.diff() <= 0).all()
        assert set(found.labels.tolist()) <= set(range(CLASSES))


def fpn(**kwargs: Any) -> dict:
    return {"type": "FPN", "in_channels": [16, 32, 64, 128], "out_channels": 16, **kwargs}


def dense_test_cfg(**nms: Any) -> dict:
    return {"nms_pre": 100, "min_bbox_size": 0, "score_thr": 0.0, "nms": nms, "max_per_img": 20}


def gfl_config(**nms: Any) -> dict:
    anchors = {"type": "AnchorGenerator", "ratios": [1.0], "octave_base_scale": 8, "scales_per_octave": 1}
    return {
        "type": "GFL",
        "neck": fpn(**WIDE, add_extra_convs="on_output"),
        "bbox_head": {
            "type": "GFLHead",
            "num_classes": CLASSES,
            "in_channels": 16,
            "stacked_convs": 1,
            "feat_channels": 16,
            "norm_cfg": {"type": "GN", "num_groups": 4},
            "anchor_generator": {**anchors, "strides": [8, 16, 32, 64, 128]},
            "loss_cls": {"type": "QualityFocalLoss", "use_sigmoid": True, "beta": 2.0, "loss_weight": 1.0},
            "loss_dfl": {"type": "DistributionFocalLoss", "loss_weight": 0.25},
            "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
        },
        "train_cfg": {"assigner": {"type": "ATSSAssigner", "topk": 9}, "allowed_border": -1, "pos_weight": -1},
        "test_cfg": dense_test_cfg(**nms),
    }


def retinanet_config(**nms: Any) -> dict:
    anchors = {"type": "AnchorGenerator", "octave_base_scale": 4, "scales_per_octave": 3, "ratios": [0.5, 1.0, 2.0]}
    assigner = {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.4, "min_pos_iou": 0}
    return {
        "type": "RetinaNet",
        "neck": fpn(**WIDE, add_extra_convs="on_input"),
        "bbox_head": {
            "type": "RetinaHead",
            "num_classes": CLASSES,
            "in_channels": 16,
            "stacked_convs": 1,
            "feat_channels": 16,
            "anchor_generator": {**anchors, "strides": [8, 16, 32, 64, 128]},
            "loss_cls": {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0},
            "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
        },
        "train_cfg": {
            "assigner": assigner,
            "sampler": {"type": "PseudoSampler"},
            "allowed_border": -1,
            "pos_weight": -1,
        },
        "test_cfg": dense_test_cfg(**nms),
    }


def faster_rcnn_config(**nms: Any) -> dict:
    def assigner(high: float, low: float) -> dict:
        return {"type": "MaxIoUAssigner", "pos_iou_thr": high, "neg_iou_thr": low, "min_pos_iou": low}

    def sampler(**kwargs: Any) -> dict:
        return {"type": "RandomSampler", "num": 32, "pos_fraction": 0.5, "neg_pos_ub": -1, **kwargs}

    proposals = {"nms_pre": 100, "max_per_img": 50, "min_bbox_size": 0, "nms": {"type": "nms", "iou_threshold": 0.7}}
    return {
        "type": "FasterRCNN",
        "neck": fpn(num_outs=5),
        "rpn_head": {
            "type": "RPNHead",
            "in_channels": 16,
            "feat_channels": 16,
            "anchor_generator": {
                "type": "AnchorGenerator",
                "scales": [8],
                "ratios": [0.5, 1.0, 2.0],
                "strides": [4, 8, 16, 32, 64],
            },
            "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
            "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
        },
        "roi_head": {
            "type": "StandardRoIHead",
            "bbox_roi_extractor": {
                "type": "SingleRoIExtractor",
                "roi_layer": {"type": "RoIAlign", "output_size": 7, "sampling_ratio": 0},
                "out_channels": 16,
                "featmap_strides": [4, 8, 16, 32],
            },
            "bbox_head": {
                "type": "Shared2FCBBoxHead",
                "in_channels": 16,
                "fc_out_channels": 32,
                "num_classes": CLASSES,
                "bbox_coder": {"type": "DeltaXYWHBBoxCoder", "target_stds": [0.1, 0.1, 0.2, 0.2]},
                "loss_cls": {"type": "CrossEntropyLoss", "loss_weight": 1.0},
                "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
            },
        },
        "train_cfg": {
            "rpn": {
                "assigner": assigner(0.7, 0.3),
                "sampler": sampler(add_gt_as_proposals=False),
                "allowed_border": -1,
                "pos_weight": -1,
            },
            "rpn_proposal": proposals,
            "rcnn": {"assigner": assigner(0.5, 0.5), "sampler": sampler(add_gt_as_proposals=True), "pos_weight": -1},
        },
        "test_cfg": {"rpn": proposals, "rcnn": {"score_thr": 0.0, "nms": nms, "max_per_img": 20}},
    }


@pytest.mark.parametrize(
    ("config", "nms", "steps"),
    [
        # GFL weighs its box terms by the class confidence, so its loss first rises.
        (gfl_config, {"type": "nms", "iou_threshold": 0.6}, 30),
        (retinanet_config, {"type": "nms", "iou_threshold": 0.5}, 2),
        (faster_rcnn_config, {"type": "soft_nms", "iou_threshold": 0.5, "min_score": 0.01}, 2),
    ],
    ids=["gfl", "retinanet", "faster_rcnn"],
)
def test_image_detector_learns_and_predicts(config, nms, steps) -> None:
    model = image_model(config(**nms))
    assert_learns(train(model, image_batch(), steps=steps))
    assert_image_predictions(predict(model, image_batch()), limit=20)


def cloud_model(config: dict, head_width: int, voxel_size: list[float], max_points: int) -> Any:
    pytest.importorskip("mmdet3d", reason="needs the 'pointcloud' extra")
    from mmdet3d.registry import MODELS
    from mmdet3d.utils import register_all_modules
    from mmengine.config import ConfigDict
    from mmengine.registry import DefaultScope

    register_all_modules(init_default_scope=False)
    voxel_layer = {
        "max_num_points": max_points,
        "point_cloud_range": RANGE,
        "voxel_size": voxel_size,
        "max_voxels": (600, 800),
    }
    common = {
        "type": "VoxelNet",
        "data_preprocessor": {"type": "Det3DDataPreprocessor", "voxel": True, "voxel_layer": voxel_layer},
        "bbox_head": anchor_head(head_width),
        "train_cfg": {
            "assigner": {
                "type": "Max3DIoUAssigner",
                "iou_calculator": {"type": "mmdet3d.BboxOverlapsNearest3D"},
                "pos_iou_thr": 0.6,
                "neg_iou_thr": 0.45,
                "min_pos_iou": 0.45,
            },
            "allowed_border": 0,
            "pos_weight": -1,
            "debug": False,
        },
        "test_cfg": {
            "use_rotate_nms": True,
            "nms_across_levels": False,
            "nms_thr": 0.01,
            "score_thr": 0.0,
            "min_bbox_size": 0,
            "nms_pre": 100,
            "max_num": 20,
        },
    }
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet3d"):
        return MODELS.build(ConfigDict({**common, **config})).train()


def anchor_head(width: int) -> dict:
    return {
        "type": "Anchor3DHead",
        "num_classes": 1,
        "in_channels": width,
        "feat_channels": width,
        "use_direction_classifier": True,
        "anchor_generator": {
            "type": "AlignedAnchor3DRangeGenerator",
            "ranges": [[0, -6.4, -1.78, 12.8, 6.4, -1.78]],
            "sizes": [[3.9, 1.6, 1.56]],
            "rotations": [0, 1.57],
            "reshape_out": False,
        },
        "diff_rad_by_sin": True,
        "bbox_coder": {"type": "DeltaXYZWLHRBBoxCoder"},
        "loss_cls": {"type": "mmdet.FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0},
        "loss_bbox": {"type": "mmdet.SmoothL1Loss", "beta": 1.0 / 9.0, "loss_weight": 2.0},
        "loss_dir": {"type": "mmdet.CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 0.2},
    }


def backbone_and_neck(in_channels: int, stride: int) -> dict:
    return {
        "backbone": {
            "type": "SECOND",
            "in_channels": in_channels,
            "layer_nums": [1, 1],
            "layer_strides": [stride, 2],
            "out_channels": [16, 16],
        },
        "neck": {"type": "SECONDFPN", "in_channels": [16, 16], "upsample_strides": [1, 2], "out_channels": [16, 16]},
    }


def cloud_batch() -> dict:
    from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
    from mmengine.structures import InstanceData

    draw = torch.Generator().manual_seed(5)
    points, samples = [], []
    for x, y, yaw in ((5.0, 1.0, 0.1), (8.0, -2.0, 1.5)):
        scene = torch.rand(400, 4, generator=draw) * torch.tensor([12.8, 12.8, 4.0, 1.0])
        scene -= torch.tensor([0.0, 6.4, 3.0, 0.0])
        car = torch.rand(200, 4, generator=draw) * torch.tensor([2.0, 2.0, 1.5, 1.0]) + torch.tensor(
            [x - 1, y - 1, -1.7, 0]
        )
        sample = Det3DDataSample(metainfo={"box_type_3d": LiDARInstance3DBoxes})
        boxes = LiDARInstance3DBoxes(torch.tensor([[x, y, -1.78, 3.9, 1.6, 1.56, yaw]]))
        sample.gt_instances_3d = InstanceData(bboxes_3d=boxes, labels_3d=torch.tensor([0]))
        points.append(torch.cat([scene, car]))
        samples.append(sample)
    return {"inputs": {"points": points}, "data_samples": samples}


def assert_cloud_predictions(samples: list[Any], limit: int) -> None:
    assert len(samples) == 2
    for sample in samples:
        found = sample.pred_instances_3d
        assert 0 < len(found) <= limit
        assert found.bboxes_3d.tensor.shape == (len(found), 7)
        assert found.bboxes_3d.tensor.isfinite().all()
        assert ((found.scores_3d > 0) & (found.scores_3d <= 1)).all()
        assert (found.labels_3d == 0).all()


def test_pointpillars_learns_and_predicts() -> None:
    voxel_size = [0.4, 0.4, 4.0]
    config = {
        "voxel_encoder": {
            "type": "PillarFeatureNet",
            "in_channels": 4,
            "feat_channels": [16],
            "voxel_size": voxel_size,
            "point_cloud_range": RANGE,
        },
        "middle_encoder": {"type": "PointPillarsScatter", "in_channels": 16, "output_shape": [32, 32]},
        **backbone_and_neck(16, 2),
    }
    model = cloud_model(config, 32, voxel_size, max_points=8)
    assert_learns(train(model, cloud_batch()))
    assert_cloud_predictions(predict(model, cloud_batch()), limit=20)


def test_second_learns_and_predicts() -> None:
    pytest.importorskip("spconv", reason="needs the 'pointcloud' extra")
    config = {
        "voxel_encoder": {"type": "HardSimpleVFE"},
        "middle_encoder": {
            "type": "SparseEncoder",
            "in_channels": 4,
            "sparse_shape": [41, 64, 64],
            "base_channels": 8,
            "output_channels": 8,
            "encoder_channels": ((8,), (8, 8, 8), (8, 8, 8), (8, 8, 8)),
            "encoder_paddings": ((1,), (1, 1, 1), (1, 1, 1), ((0, 1, 1), 1, 1)),
            "order": ("conv", "norm", "act"),
        },
        **backbone_and_neck(16, 1),
    }
    model = cloud_model(config, 32, [0.2, 0.2, 0.1], max_points=5)
    assert_learns(train(model, cloud_batch()))
    assert_cloud_predictions(predict(model, cloud_batch()), limit=20)
