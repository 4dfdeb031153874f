"""Small one-stage detectors of mmdetection for the tests of methods that read heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.detection.targets import DetectionTargets
from limbeck.engine.mmcv_ops import install

SIZE = (64, 80)  # height and width of the images
STRIDES = (8, 16, 32)
CLASSES = 3
BINS = 5  # of a side's distribution

ATSS = dict(assigner=dict(type="ATSSAssigner", topk=9), allowed_border=-1, pos_weight=-1)
RETINA = dict(
    assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1),
    sampler=dict(type="PseudoSampler"),
    allowed_border=-1,
    pos_weight=-1,
)


class Detector(nn.Module):
    """What a method sees of a detector: its head."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.bbox_head = head


def make_head(kind: str, *, seed: int = 0, width: int = 8, pyramid: int | None = None, **changes: Any) -> Any:
    """A head of mmdetection ('GFL', 'Retina', 'ATSS', 'FCOS') with weights large enough to tell outputs apart."""
    pytest.importorskip("mmdet", reason="needs the 'detection' extra")
    install()
    from mmdet.models import dense_heads
    from mmdet.utils import register_all_modules
    from mmengine.config import ConfigDict
    from mmengine.registry import DefaultScope

    register_all_modules(init_default_scope=False)
    norm = dict(type="GN", num_groups=4, requires_grad=True)
    options: dict[str, Any] = dict(num_classes=CLASSES, stacked_convs=2, feat_channels=width, norm_cfg=norm)
    options |= dict(in_channels=pyramid or width, train_cfg=ConfigDict(ATSS), test_cfg=ConfigDict())
    single = dict(type="AnchorGenerator", ratios=[1.0], octave_base_scale=4, scales_per_octave=1, strides=list(STRIDES))
    focal = dict(type="FocalLoss", use_sigmoid=True)
    if kind == "GFL":
        quality = dict(type="QualityFocalLoss", use_sigmoid=True)
        options |= dict(anchor_generator=single, loss_cls=quality, loss_bbox=dict(type="GIoULoss"), reg_max=BINS - 1)
    elif kind == "Retina":
        several = dict(type="AnchorGenerator", octave_base_scale=3, scales_per_octave=2, ratios=[0.5, 1.0])
        options |= dict(anchor_generator=several | dict(strides=list(STRIDES)), train_cfg=ConfigDict(RETINA))
        options |= dict(loss_cls=focal, norm_cfg=None)
    elif kind == "ATSS":
        coder = dict(type="DeltaXYWHBBoxCoder", target_stds=[0.1, 0.1, 0.2, 0.2])
        options |= dict(anchor_generator=single, bbox_coder=coder, loss_cls=focal, loss_bbox=dict(type="GIoULoss"))
    else:
        ranges = ((-1, 16), (16, 32), (32, 1e8))
        options |= dict(strides=STRIDES, regress_ranges=ranges, train_cfg=None)
    torch.manual_seed(seed)
    with DefaultScope.overwrite_default_scope("mmdet"):  # a run before may have left another
        head = getattr(dense_heads, f"{kind}Head")(**options | changes)
    for name, parameter in head.named_parameters():
        if parameter.dim() == 4:
            nn.init.kaiming_normal_(parameter)
        elif name.endswith("scale"):
            nn.init.constant_(parameter, 1.0 + 0.1 * int(name.split(".")[1]))
    return head


def teacher(kind: str, seed: int = 1, **changes: Any) -> Detector:
    """A frozen detector."""
    return Detector(make_head(kind, seed=seed, **changes)).eval().requires_grad_(False)


def student(kind: str, seed: int = 0, **changes: Any) -> Detector:
    """A detector in training."""
    return Detector(make_head(kind, seed=seed, **changes)).train()


def level_sizes() -> list[tuple[int, int]]:
    """Height and width of each level."""
    return [(-(-SIZE[0] // stride), -(-SIZE[1] // stride)) for stride in STRIDES]


def pyramid(batch: int = 2, width: int = 8, seed: int = 0) -> list[Tensor]:
    """Random maps of every level."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, width, *size, generator=draw) for size in level_sizes()]


def targets(*, repeat: int = 1, empty: bool = False) -> DetectionTargets:
    """Two images, the second of which is narrower than the batch; `repeat` times the same two."""
    boxes = torch.tensor(
        [
            [[5.0, 7.0, 37.5, 41.0], [40.3, 11.2, 71.0, 50.7], [3.0, 45.0, 14.0, 57.0]],
            [[9.0, 8.0, 46.3, 61.2], [0] * 4, [0] * 4],
        ]
    )
    labels = torch.tensor([[0, 2, 1], [1, -1, -1]])
    shapes = torch.tensor([[64, 80], [64, 56]])
    if empty:
        labels = torch.full_like(labels, -1)
    parts = (x.repeat(repeat, *[1] * (x.dim() - 1)) for x in (boxes, labels, shapes))
    return DetectionTargets(*parts, SIZE)
