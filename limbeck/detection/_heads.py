"""Heads of detectors of any size: a pyramid and GFL, RetinaNet or Faster R-CNN on it, as mmdetection's configs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import gcd
from typing import Any

from limbeck.errors import ConfigError, UnknownName

HEADS = ("gfl", "retinanet", "faster_rcnn")
NORMS = ("GN", "BN", "none")
_SCALES = {"gfl": 4.0, "retinanet": 2.0, "faster_rcnn": 2.0}  # half of COCO's and less: small images of small objects


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadOptions:
    """What is above the backbone; the defaults are for images of 192 × 256 pixels.

    One-stage detectors make the maps that the backbone lacks from the pyramid's last one, RetinaNet too (mmdetection's
    has the backbone's last), so that pyramids of every backbone and family are alike; two-stage ones pool it.

    Args:
        head: 'gfl' (arXiv 2006.04388), 'retinanet' (1708.02002) or 'faster_rcnn' (1506.01497).
        channels: of the feature pyramid.
        first_stride: of its finest map, 4, 8, 16 or 32 pixels.
        num_outs: its maps, each of twice the stride of the one before.
        stacked_convs: in front of the outputs of a one-stage head, for classes and boxes each.
        head_channels: of those; None takes `channels`.
        head_norm: after each of those, 'GN' (groups of 2 channels or more, at most 16 groups), 'BN' or 'none'.
        octave_base_scale: side of the smallest anchor in strides; None takes 4 for GFL and 2 for the others, where
            COCO has 8, 4 and 8.
        fc_channels: of the two layers that look at a region; two-stage only.
        proposals: regions kept of an image; two-stage only.
        rois: regions sampled of an image in training, a quarter of them on objects; two-stage only.
        score_thr: smallest score of a detection.
        nms_iou: overlap from which on the lower score is dropped.
        max_per_img: detections of an image.
    Raises: ConfigError, UnknownName.
    """

    head: str = "gfl"
    channels: int = 64
    first_stride: int = 8
    num_outs: int = 4
    stacked_convs: int = 2
    head_channels: int | None = None
    head_norm: str = "GN"
    octave_base_scale: float | None = None
    fc_channels: int = 256
    proposals: int = 256
    rois: int = 128
    score_thr: float = 0.05
    nms_iou: float = 0.6
    max_per_img: int = 100

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise UnknownName("detection head", self.head, HEADS)
        if self.head_norm not in NORMS:
            raise UnknownName("head_norm", self.head_norm, NORMS)
        counts = ("channels", "num_outs", "stacked_convs", "fc_channels", "proposals", "rois", "max_per_img")
        for name in counts:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is at least 1; got {getattr(self, name)}")

    @classmethod
    def of(cls, options: Mapping[str, Any], where: str) -> HeadOptions:
        """From keyword arguments. Raises: UnknownName for one that does not exist."""
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise UnknownName("key", name, known, f"of model {where}")
        return cls(**options)

    @property
    def strides(self) -> list[int]:
        """Of the maps of the pyramid."""
        return [self.first_stride * 2**level for level in range(self.num_outs)]

    @property
    def anchor_scale(self) -> float:
        return _SCALES[self.head] if self.octave_base_scale is None else self.octave_base_scale

    def nms(self) -> dict[str, Any]:
        return dict(type="nms", iou_threshold=self.nms_iou)


def detector_config(backbone: Mapping[str, Any], widths: Mapping[int, int], options: HeadOptions) -> dict[str, Any]:
    """mmdetection's config of a detector.

    Args:
        backbone: its config.
        widths: stride → channels of the maps that the backbone gives, in their order.
    Raises: ConfigError when no map has the stride that the pyramid starts with, or the pyramid is too short.
    """
    strides = sorted(widths)
    if options.first_stride not in strides:
        raise ConfigError(f"first_stride is one of the backbone's strides {strides}; got {options.first_stride}")
    start = strides.index(options.first_stride)
    own = strides[start:]
    if options.num_outs < len(own):
        raise ConfigError(f"num_outs is at least {len(own)} from stride {own[0]} to {own[-1]}; got {options.num_outs}")
    two_stage = options.head == "faster_rcnn"
    neck = dict(
        type="FPN",
        in_channels=[widths[stride] for stride in strides],
        start_level=start,
        out_channels=options.channels,
        num_outs=options.num_outs,
        add_extra_convs=False if two_stage else "on_output",
    )
    heads = {"gfl": _gfl, "retinanet": _retinanet}[options.head](options) if not two_stage else _faster(options, own)
    return dict(backbone=dict(backbone), neck=neck, **heads)


def _one_stage(options: HeadOptions) -> dict[str, Any]:
    """What GFL's and RetinaNet's heads share."""
    channels = options.head_channels or options.channels
    norm: dict[str, Any] | None = None if options.head_norm == "none" else dict(type=options.head_norm)
    if norm is not None and options.head_norm == "GN":
        norm["num_groups"] = gcd(16, max(1, channels // 2))
    return dict(
        in_channels=options.channels, feat_channels=channels, stacked_convs=options.stacked_convs, norm_cfg=norm
    )


def _dense_test(options: HeadOptions) -> dict[str, Any]:
    return dict(
        nms_pre=1000,
        min_bbox_size=0,
        score_thr=options.score_thr,
        nms=options.nms(),
        max_per_img=options.max_per_img,
    )


def _gfl(options: HeadOptions) -> dict[str, Any]:
    anchors = dict(
        type="AnchorGenerator",
        ratios=[1.0],
        octave_base_scale=options.anchor_scale,
        scales_per_octave=1,
        strides=options.strides,
    )
    head = dict(
        type="GFLHead",
        anchor_generator=anchors,
        loss_cls=dict(type="QualityFocalLoss", use_sigmoid=True, beta=2.0, loss_weight=1.0),
        loss_dfl=dict(type="DistributionFocalLoss", loss_weight=0.25),
        reg_max=16,
        loss_bbox=dict(type="GIoULoss", loss_weight=2.0),
    )
    train = dict(assigner=dict(type="ATSSAssigner", topk=9), allowed_border=-1, pos_weight=-1, debug=False)
    return dict(type="GFL", bbox_head=head | _one_stage(options), train_cfg=train, test_cfg=_dense_test(options))


def _retinanet(options: HeadOptions) -> dict[str, Any]:
    anchors = dict(
        type="AnchorGenerator",
        octave_base_scale=options.anchor_scale,
        scales_per_octave=3,
        ratios=[0.5, 1.0, 2.0],
        strides=options.strides,
    )
    head = dict(
        type="RetinaHead",
        anchor_generator=anchors,
        bbox_coder=_coder(1.0),
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type="L1Loss", loss_weight=1.0),
    )
    train = dict(
        assigner=_by_overlap(0.5, 0.4, 0.0),
        sampler=dict(type="PseudoSampler"),
        allowed_border=-1,
        pos_weight=-1,
        debug=False,
    )
    return dict(type="RetinaNet", bbox_head=head | _one_stage(options), train_cfg=train, test_cfg=_dense_test(options))


def _faster(options: HeadOptions, own: list[int]) -> dict[str, Any]:
    """Regions are read from the maps that the backbone has itself, strides `own`."""
    rpn = dict(
        type="RPNHead",
        in_channels=options.channels,
        feat_channels=options.channels,
        anchor_generator=dict(
            type="AnchorGenerator", scales=[options.anchor_scale], ratios=[0.5, 1.0, 2.0], strides=options.strides
        ),
        bbox_coder=_coder(1.0),
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
        loss_bbox=dict(type="L1Loss", loss_weight=1.0),
    )
    box = dict(
        type="Shared2FCBBoxHead",
        in_channels=options.channels,
        fc_out_channels=options.fc_channels,
        roi_feat_size=7,
        bbox_coder=_coder(0.1),
        reg_class_agnostic=False,
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
        loss_bbox=dict(type="L1Loss", loss_weight=1.0),
    )
    extractor = dict(
        type="SingleRoIExtractor",
        roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=0),
        out_channels=options.channels,
        featmap_strides=own,
    )
    roi = dict(type="StandardRoIHead", bbox_roi_extractor=extractor, bbox_head=box)
    return dict(type="FasterRCNN", rpn_head=rpn, roi_head=roi, **_two_stage_cfg(options))


def _two_stage_cfg(options: HeadOptions) -> dict[str, Any]:
    proposals = dict(
        nms_pre=1000, max_per_img=options.proposals, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0
    )
    first = dict(
        assigner=_by_overlap(0.7, 0.3, 0.3),
        sampler=dict(type="RandomSampler", num=256, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=False),
        allowed_border=-1,
        pos_weight=-1,
        debug=False,
    )
    second = dict(
        assigner=_by_overlap(0.5, 0.5, 0.5, match_low_quality=False),
        sampler=dict(
            type="RandomSampler", num=options.rois, pos_fraction=0.25, neg_pos_ub=-1, add_gt_as_proposals=True
        ),
        pos_weight=-1,
        debug=False,
    )
    last = dict(score_thr=options.score_thr, nms=options.nms(), max_per_img=options.max_per_img)
    return dict(train_cfg=dict(rpn=first, rpn_proposal=proposals, rcnn=second), test_cfg=dict(rpn=proposals, rcnn=last))


def _by_overlap(positive: float, negative: float, least: float, *, match_low_quality: bool = True) -> dict[str, Any]:
    return dict(
        type="MaxIoUAssigner",
        pos_iou_thr=positive,
        neg_iou_thr=negative,
        min_pos_iou=least,
        match_low_quality=match_low_quality,
        ignore_iof_thr=-1,
    )


def _coder(std: float) -> dict[str, Any]:
    """Offsets of centre and size; those of regions are divided by 0.1 and 0.2, those of anchors by 1."""
    stds = [std, std, 2 * std, 2 * std] if std != 1.0 else [1.0] * 4
    return dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=stds)
