"""The detectors of the published KITTI tables at the widths of PointDistiller (arXiv 2205.11098), for mmdetection3d.

Each function returns mmdetection3d's `model` config. Classes are Pedestrian, Cyclist, Car, in this order; grids,
anchors, targets and post-processing are those of the published 3-class recipes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from limbeck.errors import ConfigError

SIZES = ((0.8, 0.6, 1.73), (1.76, 0.6, 1.73), (3.9, 1.6, 1.56))
"""Mean length, width and height of Pedestrian, Cyclist and Car, in metres."""
BOTTOMS = (-0.6, -0.6, -1.78)
"""Height of the anchors' bottoms, a class, in metres."""

Compression = Literal["full", "8x", "16x"]
Cut = Callable[..., tuple[int, ...]]

_DIVISORS = {"full": 1.0, "8x": 2.8, "16x": 4.0}
_SA_CHANNELS = (
    ((16, 16, 32), (32, 32, 64)),
    ((64, 64, 128), (64, 96, 128)),
    ((128, 196, 256), (128, 196, 256)),
    ((256, 256, 512), (256, 384, 512)),
)


def pointpillars(width: float) -> dict[str, Any]:
    """PointPillars (arXiv 1812.05784) on 0.16 m pillars.

    Args:
        width: of all channels; 1 is the teacher (4.8 M parameters), 0.5 the 4× student, 0.25 the 16× student.
    Raises: ConfigError unless `width` divides 64 channels.
    """
    first = _channels(64, width)
    extent, voxel = (0, -39.68, -3, 69.12, 39.68, 1), (0.16, 0.16, 4)
    stages = [first, 2 * first, 4 * first]
    return dict(
        type="VoxelNet",
        data_preprocessor=_voxels(extent, voxel, points=32),
        voxel_encoder=dict(
            type="PillarFeatureNet",
            in_channels=4,
            feat_channels=[first],
            with_distance=False,
            voxel_size=voxel,
            point_cloud_range=extent,
        ),
        middle_encoder=dict(type="PointPillarsScatter", in_channels=first, output_shape=[496, 432]),
        backbone=dict(
            type="SECOND", in_channels=first, layer_nums=[3, 5, 5], layer_strides=[2, 2, 2], out_channels=stages
        ),
        neck=dict(type="SECONDFPN", in_channels=stages, upsample_strides=[1, 2, 4], out_channels=[2 * first] * 3),
        bbox_head=_anchor_head(6 * first, extent, "AlignedAnchor3DRangeGenerator", assign_per_class=True),
        train_cfg=_anchor_targets(small=(0.5, 0.35)),
        test_cfg=_anchor_results(),
    )


def second(width: float) -> dict[str, Any]:
    """SECOND (Sensors 2018, 18(10), 3337) on voxels of 0.05 × 0.05 × 0.1 m; needs spconv.

    Args:
        width: of all channels; 1 is the teacher (5.3 M parameters), 0.5 the 4× student, 0.25 the 16× student.
    Raises: ConfigError unless `width` divides 16 channels.
    """
    first = _channels(16, width)
    extent, voxel = (0, -40, -3, 70.4, 40, 1), (0.05, 0.05, 0.1)
    stages = [8 * first, 16 * first]
    return dict(
        type="VoxelNet",
        data_preprocessor=_voxels(extent, voxel, points=5),
        voxel_encoder=dict(type="HardSimpleVFE"),
        middle_encoder=dict(
            type="SparseEncoder",
            in_channels=4,
            sparse_shape=[41, 1600, 1408],
            base_channels=first,
            output_channels=8 * first,
            encoder_channels=((first,), (2 * first,) * 3, (4 * first,) * 3, (4 * first,) * 3),
            encoder_paddings=((1,), (1, 1, 1), (1, 1, 1), ((0, 1, 1), 1, 1)),
            order=("conv", "norm", "act"),
        ),
        backbone=dict(
            type="SECOND", in_channels=16 * first, layer_nums=[5, 5], layer_strides=[1, 2], out_channels=stages
        ),
        neck=dict(type="SECONDFPN", in_channels=stages, upsample_strides=[1, 2], out_channels=[16 * first] * 2),
        bbox_head=_anchor_head(32 * first, extent, "Anchor3DRangeGenerator"),
        train_cfg=_anchor_targets(small=(0.35, 0.2)),
        test_cfg=_anchor_results(),
    )


def _channels(full: int, width: float) -> int:
    channels = full * width
    if channels < 1 or channels != int(channels):
        raise ConfigError(
            f"width {width} makes {channels:g} of {full} channels; take 1, 0.5, 0.25 or another that divides"
        )
    return int(channels)


def _voxels(extent: tuple[float, ...], voxel: tuple[float, ...], points: int) -> dict[str, Any]:
    layer = dict(
        max_num_points=points, point_cloud_range=list(extent), voxel_size=list(voxel), max_voxels=(16000, 40000)
    )
    return dict(type="Det3DDataPreprocessor", voxel=True, voxel_layer=layer)


def _anchor_head(width: int, extent: tuple[float, ...], generator: str, **options: Any) -> dict[str, Any]:
    (left, right, _, far, up, _) = extent
    ranges = [[left, right, bottom, far, up, bottom] for bottom in BOTTOMS]
    return dict(
        type="Anchor3DHead",
        num_classes=len(SIZES),
        in_channels=width,
        feat_channels=width,
        use_direction_classifier=True,
        anchor_generator=dict(
            type=generator,
            ranges=ranges,
            sizes=[list(size) for size in SIZES],
            rotations=[0, 1.57],
            reshape_out=False,
        ),
        diff_rad_by_sin=True,
        bbox_coder=dict(type="DeltaXYZWLHRBBoxCoder"),
        loss_cls=dict(type="mmdet.FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type="mmdet.SmoothL1Loss", beta=1 / 9, loss_weight=2.0),
        loss_dir=dict(type="mmdet.CrossEntropyLoss", use_sigmoid=False, loss_weight=0.2),
        **options,
    )


def _anchor_targets(small: tuple[float, float]) -> dict[str, Any]:
    """IoU from which an anchor is positive and below which negative: `small` for people, 0.6 and 0.45 for cars."""
    assigners = [
        dict(
            type="Max3DIoUAssigner",
            iou_calculator=dict(type="BboxOverlapsNearest3D"),
            pos_iou_thr=high,
            neg_iou_thr=low,
            min_pos_iou=low,
            ignore_iof_thr=-1,
        )
        for high, low in (small, small, (0.6, 0.45))
    ]
    return dict(assigner=assigners, allowed_border=0, pos_weight=-1, debug=False)


def _anchor_results() -> dict[str, Any]:
    return dict(
        use_rotate_nms=True,
        nms_across_levels=False,
        nms_thr=0.01,
        score_thr=0.1,
        min_bbox_size=0,
        nms_pre=100,
        max_num=50,
    )


def pointrcnn(widths: Compression) -> dict[str, Any]:
    """PointRCNN (arXiv 1812.04244) on 16,384 points a cloud.

    Unlike mmdetection3d's own config, mean sizes follow the order of the classes, and proposals in training are
    those of the training settings (NMS at 0.8), which that config puts where nothing reads them.

    Args:
        widths: "full" is the teacher (4.1 M parameters); "8x" divides channels by 2.8, "16x" by 4.
    Raises: ConfigError for any other.
    """
    if widths not in _DIVISORS:
        raise ConfigError(f"widths of PointRCNN are {', '.join(_DIVISORS)}; got {widths!r}")
    divisor = _DIVISORS[widths]

    def cut(*full: int) -> tuple[int, ...]:
        return tuple(int(channels / divisor) for channels in full)

    scales = [tuple(cut(*mlp) for mlp in level) for level in _SA_CHANNELS]
    return dict(
        type="PointRCNN",
        data_preprocessor=dict(type="Det3DDataPreprocessor"),
        backbone=dict(
            type="PointNet2SAMSG",
            in_channels=4,
            num_points=(4096, 1024, 256, 64),
            radii=((0.1, 0.5), (0.5, 1.0), (1.0, 2.0), (2.0, 4.0)),
            num_samples=((16, 32),) * 4,
            sa_channels=tuple(scales),
            fps_mods=("D-FPS",) * 4,
            fps_sample_range_lists=(-1,) * 4,
            aggregation_channels=(None,) * 4,
            dilated_group=(False,) * 4,
            out_indices=(0, 1, 2, 3),
            norm_cfg=dict(type="BN2d", eps=1e-3, momentum=0.1),
            sa_cfg=dict(type="PointSAModuleMSG", pool_mod="max", use_xyz=True, normalize_xyz=False),
        ),
        neck=dict(type="PointNetFPNeck", fp_channels=_fp_channels(scales, cut(512, 512, 256, 128))),
        rpn_head=_rpn_head(cut),
        roi_head=_roi_head(cut),
        train_cfg=dict(rpn=dict(), rpn_proposal=_proposals(0.8), rcnn=_roi_targets()),
        test_cfg=dict(rpn=_proposals(0.85), rcnn=dict(use_rotate_nms=True, nms_thr=0.1, score_thr=0.1)),
    )


def _fp_channels(scales: list[tuple[tuple[int, ...], ...]], widths: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Channels of the neck's layers, deep to shallow: what comes from below joins that level's own, then two layers."""
    own = [1, *(sum(mlp[-1] for mlp in level) for level in scales)]  # a point's own is its reflectance
    below = own.pop()
    layers = []
    for width in widths:
        layers.append((below + own.pop(), width, width))
        below = width
    return tuple(layers)


def _rpn_head(cut: Cut) -> dict[str, Any]:
    return dict(
        type="PointRPNHead",
        num_classes=len(SIZES),
        enlarge_width=0.1,
        pred_layer_cfg=dict(
            in_channels=cut(128)[0], cls_linear_channels=cut(256, 256), reg_linear_channels=cut(256, 256)
        ),
        cls_loss=dict(
            type="mmdet.FocalLoss", use_sigmoid=True, reduction="sum", gamma=2.0, alpha=0.25, loss_weight=1.0
        ),
        bbox_loss=dict(type="mmdet.SmoothL1Loss", beta=1 / 9, reduction="sum", loss_weight=1.0),
        bbox_coder=dict(
            type="PointXYZWHLRBBoxCoder", code_size=8, use_mean_size=True, mean_size=[list(size) for size in SIZES]
        ),
    )


def _roi_head(cut: Cut) -> dict[str, Any]:
    return dict(
        type="PointRCNNRoIHead",
        bbox_roi_extractor=dict(
            type="Single3DRoIPointExtractor", roi_layer=dict(type="RoIPointPool3d", num_sampled_points=512)
        ),
        bbox_head=dict(
            type="PointRCNNBboxHead",
            num_classes=1,
            loss_bbox=dict(type="mmdet.SmoothL1Loss", beta=1 / 9, reduction="sum", loss_weight=1.0),
            loss_cls=dict(type="mmdet.CrossEntropyLoss", use_sigmoid=True, reduction="sum", loss_weight=1.0),
            pred_layer_cfg=dict(
                in_channels=cut(512)[0], cls_conv_channels=cut(256, 256), reg_conv_channels=cut(256, 256), bias=True
            ),
            in_channels=5,  # a point's place, its score and its distance
            mlp_channels=list(cut(128, 128)),
            num_points=(128, 32, -1),
            radius=(0.2, 0.4, 100),
            num_samples=(16, 16, 16),
            sa_channels=(cut(128, 128, 128), cut(128, 128, 256), cut(256, 256, 512)),
            with_corner_loss=True,
        ),
        depth_normalizer=70.0,
    )


def _proposals(nms_iou: float) -> dict[str, Any]:
    return dict(nms_cfg=dict(use_rotate_nms=True, iou_thr=nms_iou, nms_pre=9000, nms_post=512, score_thr=None))


def _roi_targets() -> dict[str, Any]:
    assigners = [
        dict(
            type="Max3DIoUAssigner",
            iou_calculator=dict(type="BboxOverlaps3D", coordinate="lidar"),
            pos_iou_thr=0.55,
            neg_iou_thr=0.55,
            min_pos_iou=0.55,
            ignore_iof_thr=-1,
            match_low_quality=False,
        )
        for _ in SIZES
    ]
    sampler = dict(
        type="IoUNegPiecewiseSampler",
        num=128,
        pos_fraction=0.5,
        neg_piece_fractions=[0.8, 0.2],
        neg_iou_piece_thrs=[0.55, 0.1],
        neg_pos_ub=-1,
        add_gt_as_proposals=False,
        return_iou=True,
    )
    return dict(assigner=assigners, sampler=sampler, cls_pos_thr=0.7, cls_neg_thr=0.25)
