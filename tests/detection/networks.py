"""Tiny detectors of every kind, and a padded batch of two images, as a data set and as mmdetection give it."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.detection._heads import HeadOptions, detector_config
from limbeck.detection.adapter import DetectionAdapter
from limbeck.engine.adapter import Batch
from limbeck.engine.registry import MODELS

SIZE, K = (64, 96), 3
TINY = dict(
    type="ResNetDetector",
    base_channels=8,
    channels=8,
    stacked_convs=1,
    fc_channels=16,
    proposals=32,
    rois=16,
    octave_base_scale=4,
    score_thr=0.0,
    num_classes=K,
    input_size=(3, *SIZE),
)
BOXES = [[[4.0, 8, 40, 44], [50, 10, 90, 60]], [[10.0, 6, 60, 40]]]
LABELS = [[0, 2], [1]]
KINDS = ["gfl", "retinanet", "fcos", "atss", "faster_rcnn", "cascade_rcnn"]


def base(head: str) -> dict[str, Any]:
    """A tiny detector as a config of mmdetection."""
    widths = {stride: 2 * stride for stride in (4, 8, 16, 32)}
    backbone = dict(type="ResNet", depth=18, base_channels=8, norm_eval=False)
    options = {k: v for k, v in TINY.items() if k not in ("type", "base_channels", "num_classes", "input_size")}
    return detector_config(backbone, widths, HeadOptions(**options | dict(head=head)))  # type: ignore[arg-type]


def fcos() -> dict[str, Any]:
    config, ranges = base("gfl"), ((-1, 32), (32, 64), (64, 128), (128, 100000))
    head = dict(type="FCOSHead", in_channels=8, feat_channels=8, stacked_convs=1, strides=[8, 16, 32, 64])
    norm = dict(norm_cfg=dict(type="GN", num_groups=4), norm_on_bbox=True, centerness_on_reg=True)
    return config | dict(type="FCOS", bbox_head=head | norm | dict(regress_ranges=ranges), train_cfg=None)


def atss() -> dict[str, Any]:
    config = base("gfl")
    head = {k: v for k, v in config["bbox_head"].items() if k not in ("loss_dfl", "reg_max")}
    head |= dict(
        type="ATSSHead",
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_centerness=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
    )
    return config | dict(type="ATSS", bbox_head=head)


def cascade() -> dict[str, Any]:
    config = base("faster_rcnn")
    roi, train = config["roi_head"], config["train_cfg"]
    heads = [deepcopy(roi["bbox_head"]) | dict(reg_class_agnostic=True) for _ in range(2)]
    roi = roi | dict(type="CascadeRoIHead", num_stages=2, stage_loss_weights=[1, 0.5], bbox_head=heads)
    train = train | dict(rcnn=[deepcopy(train["rcnn"]) for _ in range(2)])
    return config | dict(type="CascadeRCNN", roi_head=roi, train_cfg=train)


def network(head: str = "gfl", **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    own = {"fcos": fcos, "atss": atss, "cascade_rcnn": cascade}
    if head in own:
        return MODELS.make(dict(type="mmdet", config=own[head]() | changes, num_classes=K, input_size=(3, *SIZE)))
    return MODELS.make(TINY | dict(head=head) | changes)


def raw(**changes: Any) -> dict[str, Any]:
    """A batch as a data set gives it: the second image is 64 × 80 in a batch of 64 × 96, its padding grey."""
    draw = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (2, 3, *SIZE), generator=draw, dtype=torch.uint8)
    pixels[1, :, :, 80:] = 128
    boxes, labels = torch.zeros(2, 2, 4), torch.full((2, 2), -1)
    for row, (given, classes) in enumerate(zip(BOXES, LABELS)):
        boxes[row, : len(given)], labels[row, : len(given)] = torch.tensor(given), torch.tensor(classes)
    samples = dict(boxes=boxes, labels=labels, shapes=torch.tensor([[64, 96], [64, 80]]), ids=torch.tensor([7, 9]))
    return dict(inputs=pixels, data_samples=samples | changes)


def batch(model: nn.Module, **changes: Any) -> Batch:
    adapter = DetectionAdapter()
    ready = adapter.preprocessor(model)(raw(**changes), True)
    return adapter.batch(ready["inputs"], ready["data_samples"])


def theirs(truth: bool = True, crowd: tuple[int, int] | None = None) -> list[Any]:
    """mmdetection's samples of the same batch, written by hand."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    samples = []
    for row, width in enumerate((96, 80)):
        meta = dict(img_shape=(64, width), ori_shape=(64, width), pad_shape=(64, 96), batch_input_shape=SIZE)
        sample = DetDataSample(metainfo=meta | dict(scale_factor=(1.0, 1.0), img_id=row))
        if truth:
            kept = [n for n in range(len(LABELS[row])) if crowd != (row, n)]
            other = [n for n in range(len(LABELS[row])) if crowd == (row, n)]
            for name, chosen in (("gt_instances", kept), ("ignored_instances", other)):
                boxes = torch.tensor([BOXES[row][n] for n in chosen]).reshape(-1, 4)
                labels = torch.tensor([LABELS[row][n] for n in chosen], dtype=torch.long)
                setattr(sample, name, InstanceData(bboxes=boxes, labels=labels))
        samples.append(sample)
    return samples


def losses_of(model: nn.Module, given: Batch) -> dict[str, Tensor]:
    torch.manual_seed(5)  # two-stage detectors draw regions
    return DetectionAdapter().forward(model, given.inputs, given, with_loss=True).losses


def by_level(losses: dict[str, Any]) -> dict[str, float]:
    """Loss terms as numbers, levels added."""
    return {k: (sum(v) if isinstance(v, list) else v).item() for k, v in losses.items() if "loss" in k}
