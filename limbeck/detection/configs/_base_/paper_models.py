"""The detectors of the published tables on a ResNet of full width, as mmdetection's configs have them.

Backbones name torchvision's ImageNet weights by mmengine's alias; the first stage and all batch norms stay as they are.
"""

from limbeck.detection._heads import HeadOptions, detector_config

_WIDTHS = {4: 256, 8: 512, 16: 1024, 32: 2048}
_GN = dict(type="GN", num_groups=32, requires_grad=True)


def _on_resnet(depth: int, head: str, **options) -> dict:
    """Five levels of 256 channels; a one-stage head has four convolutions without norm."""
    backbone = dict(
        type="ResNet",
        depth=depth,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        frozen_stages=1,
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=True,
        style="pytorch",
        init_cfg=dict(type="Pretrained", checkpoint=f"torchvision://resnet{depth}"),
    )
    shape = dict(channels=256, num_outs=5, stacked_convs=4, head_norm="none", nms_iou=0.5)
    return detector_config(backbone, _WIDTHS, HeadOptions.of(shape | dict(head=head) | options, "the paper tier"))


def retinanet(depth: int) -> dict:
    """RetinaNet (arXiv 1708.02002); P6 is made of the backbone's last map."""
    config = _on_resnet(depth, "retinanet", octave_base_scale=4)
    config["neck"]["add_extra_convs"] = "on_input"
    return config


def gfl(depth: int) -> dict:
    """GFL (arXiv 2006.04388)."""
    config = _on_resnet(depth, "gfl", octave_base_scale=8, nms_iou=0.6)
    config["bbox_head"]["norm_cfg"] = _GN
    return config


def fcos(depth: int) -> dict:
    """FCOS (arXiv 1904.01355) as first published: distances by exp, no centre sampling, centerness beside classes."""
    config = _on_resnet(depth, "gfl")
    config["neck"]["relu_before_extra_convs"] = True
    head = dict(
        type="FCOSHead",
        in_channels=256,
        feat_channels=256,
        stacked_convs=4,
        strides=[8, 16, 32, 64, 128],
        norm_cfg=_GN,
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type="IoULoss", loss_weight=1.0),
        loss_centerness=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
    )
    return config | dict(type="FCOS", bbox_head=head, train_cfg=None)


def reppoints(depth: int) -> dict:
    """RepPoints (arXiv 1904.11490) by moments, with group norm in neck and head."""
    config = retinanet(depth)
    config["neck"]["norm_cfg"] = _GN
    head = dict(
        type="RepPointsHead",
        in_channels=256,
        feat_channels=256,
        point_feat_channels=256,
        stacked_convs=3,
        num_points=9,
        gradient_mul=0.1,
        point_strides=[8, 16, 32, 64, 128],
        point_base_scale=4,
        norm_cfg=_GN,
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox_init=dict(type="SmoothL1Loss", beta=0.11, loss_weight=0.5),
        loss_bbox_refine=dict(type="SmoothL1Loss", beta=0.11, loss_weight=1.0),
        transform_method="moment",
    )
    stage = dict(allowed_border=-1, pos_weight=-1, debug=False)
    refine = dict(assigner=config["train_cfg"]["assigner"], **stage)
    init = dict(assigner=dict(type="PointAssigner", scale=4, pos_num=1), **stage)
    return config | dict(type="RepPointsDetector", bbox_head=head, train_cfg=dict(init=init, refine=refine))


def faster_rcnn(depth: int) -> dict:
    """Faster R-CNN with a pyramid (arXiv 1506.01497, 1612.03144)."""
    shape = dict(first_stride=4, octave_base_scale=8, fc_channels=1024, proposals=1000, rois=512)
    config = _on_resnet(depth, "faster_rcnn", **shape)
    proposals = config["train_cfg"]["rpn_proposal"] | dict(nms_pre=2000)
    return config | dict(train_cfg=config["train_cfg"] | dict(rpn_proposal=proposals))
