"""3D detectors on LiDAR: PointPillars and SECOND of any width, as mmdetection3d builds them; random weights.

Every model has `grid`, by which its input is voxelised, and `num_classes`. `model(voxels)` gives the raw outputs of its
head. Taps are mmdetection3d's module names: `voxel_encoder` (n, C) with a row for every voxel of the batch,
`middle_encoder`, `backbone[i]`, `neck[0]`, `bbox_head.conv_cls`, ….
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

from torch import nn

from limbeck.engine.registry import MODELS, require
from limbeck.errors import ConfigError, UnknownName
from limbeck.pointcloud.points import PointGrid
from limbeck.pointcloud.voxels import DESK_PILLAR, DESK_RANGE, Grid

PEDESTRIAN, CYCLIST, CAR = (
    dict(size=(0.8, 0.6, 1.73), z=-0.6),
    dict(size=(1.76, 0.6, 1.73), z=-0.6),
    dict(size=(3.9, 1.6, 1.56), z=-1.78),
)
"""Length, width and height, and the height of the bottom above the sensor, in metres."""
_CAR = CAR | dict(positive=0.6, negative=0.45)
ANCHORS: dict[str, tuple[dict[str, Any], ...]] = {
    "kitti": (PEDESTRIAN | dict(positive=0.5, negative=0.35), CYCLIST | dict(positive=0.5, negative=0.35), _CAR),
    "second": (PEDESTRIAN | dict(positive=0.35, negative=0.2), CYCLIST | dict(positive=0.35, negative=0.2), _CAR),
    "coarse": (PEDESTRIAN | dict(positive=0.35, negative=0.15), CYCLIST | dict(positive=0.35, negative=0.2), _CAR),
}
"""Anchors of Pedestrian, Cyclist and Car by name, with the IoU from which one is positive and below which negative.

'kitti' is mmdetection3d's for PointPillars and 'second' for SECOND. 'coarse' is ours (ASSUMPTION), for cells of 0.64 m:
an object as large as its anchor overlaps the nearest one by at least 0.162 and 0.236 there, where a cell of half the
size gives 0.41 and 0.50, so that thresholds above would leave one pedestrian in three without any anchor.
"""
SECOND_RANGE = (0.0, -40.0, -3.0, 70.4, 40.0, 1.0)


@MODELS.register_module()
def PointPillarsDetector(  # noqa: N802 - configs name it as a class
    width: float = 64,
    num_classes: int = 3,
    point_cloud_range: Sequence[float] = DESK_RANGE,
    voxel_size: Sequence[float] = DESK_PILLAR,
    max_points: int = 20,
    max_voxels: int | Sequence[int] = 4000,
    anchors: str | Sequence[Mapping[str, Any]] = "coarse",
    momentum: float = 0.01,
    layers: Sequence[int] = (3, 5, 5),
    **test_options: Any,
) -> nn.Module:
    """PointPillars (arXiv 1812.05784) whose every width is scaled by one number, as PointDistiller's students are.

    Args:
        width: of the pillar encoder; SECOND's three stages have 1, 2 and 4 times it, each branch of the neck twice,
            all rounded. 64 is the paper's, 32 a quarter of its parameters, 22.63 an eighth, 16 a sixteenth.
        num_classes: one anchor size each, in the order of labels.
        point_cloud_range, voxel_size: in metres; one pillar over the whole height. The default is the desk's, at the
            paper's size it is (0, −39.68, −3, 69.12, 39.68, 1) and (0.16, 0.16, 4).
        max_points, max_voxels: points that a pillar and pillars that a cloud keep; 32 and (16000, 40000) there.
        anchors: a name of `ANCHORS`, 'kitti' at the paper's size, or as many such dicts as classes, with size, z,
            positive and negative; each stands in two rotations at every cell.
        momentum: of batch norms' running statistics; runs of few steps want more than mmdetection3d's 0.01.
        layers: 3 × 3 convolutions of each of the three stages, after the one that halves the map.
        test_options: see `_test_cfg`.
    Raises: ExtraMissing; ConfigError for a grid that strides of 2, 4 and 8 do not divide, and for other anchors than
        classes or layers than stages; UnknownName for an option that there is none of.
    """
    grid = Grid.of(point_cloud_range, voxel_size, max_points, max_voxels)
    depth, rows, columns = grid.shape
    if rows % 8 or columns % 8 or depth != 1:
        raise ConfigError(
            f"PointPillars has {columns} × {rows} pillars along x and y, {depth} along z; the first two must be "
            "multiples of 8, for its stages halve them three times, the last 1: change point_cloud_range or voxel_size"
        )
    if len(layers) != 3 or min(layers) < 0:
        raise ConfigError(f"layers of PointPillars are three numbers of 0 or more, one a stage; got {tuple(layers)}")
    stem, middle, last = (_scaled(width, factor) for factor in (1, 2, 4))
    norm = dict(eps=1e-3, momentum=momentum)
    config = dict(
        voxel_encoder=dict(
            type="PillarFeatureNet",
            in_channels=4,
            feat_channels=[stem],
            voxel_size=list(grid.voxel_size),
            point_cloud_range=list(grid.point_cloud_range),
            norm_cfg=dict(type="BN1d", **norm),
        ),
        middle_encoder=dict(type="PointPillarsScatter", in_channels=stem, output_shape=[rows, columns]),
        backbone=dict(
            type="SECOND",
            in_channels=stem,
            layer_nums=list(layers),
            layer_strides=[2, 2, 2],
            out_channels=[stem, middle, last],
            norm_cfg=dict(type="BN", **norm),
        ),
        neck=dict(
            type="SECONDFPN",
            in_channels=[stem, middle, last],
            upsample_strides=[1, 2, 4],
            out_channels=[middle] * 3,
            norm_cfg=dict(type="BN", **norm),
        ),
        **_head(3 * middle, grid, anchors, num_classes, "PointPillarsDetector", test_options, aligned=True),
    )
    return _built(config, grid, num_classes)


@MODELS.register_module()
def SECONDDetector(  # noqa: N802 - configs name it as a class
    width: float = 128,
    num_classes: int = 3,
    point_cloud_range: Sequence[float] = SECOND_RANGE,
    voxel_size: Sequence[float] = (0.05, 0.05, 0.1),
    max_points: int = 5,
    max_voxels: int | Sequence[int] = (16000, 40000),
    anchors: str | Sequence[Mapping[str, Any]] = "second",
    **test_options: Any,
) -> nn.Module:
    """SECOND (Sensors 18(10), 2018) through spconv, whose every width is scaled by one number; not for the desk.

    Args:
        width: of the sparse encoder's output; its stem has an eighth of it, the 2D stages 1 and 2 times it. 128 is the
            paper's, 64 and 32 are PointDistiller's 4× and 16× students.
        others: as `PointPillarsDetector`; z has one voxel less than the sparse encoder's 41 layers.
    Raises: ExtraMissing; ConfigError; UnknownName.
    """
    grid = Grid.of(point_cloud_range, voxel_size, max_points, max_voxels)
    depth, rows, columns = grid.shape
    if rows % 16 or columns % 16 or depth != 40:
        raise ConfigError(
            f"SECOND has {columns} × {rows} voxels along x and y and {depth} along z; the first two must be multiples "
            "of 16 and the last 40: change point_cloud_range or voxel_size"
        )
    require("spconv", "SECONDDetector", "pointcloud")
    one, two, four, out = (_scaled(width, factor) for factor in (1 / 8, 1 / 4, 1 / 2, 1))
    config = dict(
        voxel_encoder=dict(type="HardSimpleVFE"),
        middle_encoder=dict(
            type="SparseEncoder",
            in_channels=4,
            sparse_shape=[depth + 1, rows, columns],
            order=("conv", "norm", "act"),
            base_channels=one,
            encoder_channels=((one,), (two, two, two), (four, four, four), (four, four, four)),
            output_channels=out,
        ),
        backbone=dict(
            type="SECOND",
            in_channels=2 * out,
            layer_nums=[5, 5],
            layer_strides=[1, 2],
            out_channels=[out, 2 * out],
        ),
        neck=dict(type="SECONDFPN", in_channels=[out, 2 * out], upsample_strides=[1, 2], out_channels=[2 * out] * 2),
        **_head(4 * out, grid, anchors, num_classes, "SECONDDetector", test_options, aligned=False),
    )
    return _built(config, grid, num_classes)


@MODELS.register_module(name="mmdet3d")
def mmdet3d_model(config: Mapping[str, Any], points: Mapping[str, Any] | None = None) -> nn.Module:
    """A VoxelNet with an anchor head, or a PointRCNN, from mmdetection3d's own config; random weights.

    Args:
        config: mmdetection3d's `model`, such as `limbeck.pointcloud.paper_models` gives; its data_preprocessor is read
            for a VoxelNet's grid alone.
        points: of a PointRCNN: `point_cloud_range`, `count` of points that a cloud has, and `far`; see `PointGrid`.
    Raises: ExtraMissing; ConfigError for another type, and for `points` that are missing or too many.
    """
    parts = dict(config)
    kind, ready = parts.pop("type", None), dict(parts.pop("data_preprocessor", None) or {})
    if kind not in ("VoxelNet", "PointRCNN"):
        raise ConfigError(f"model mmdet3d builds a VoxelNet or a PointRCNN; got type {kind!r}")
    if (kind == "PointRCNN") != (points is not None):
        raise ConfigError("model mmdet3d: points (point_cloud_range, count, far) are for PointRCNN, which needs them")
    if points is not None:
        grid: Grid = PointGrid.covering(**points)
        return _built(parts, grid, parts["rpn_head"]["num_classes"], two_stages=True)
    layer = ready["voxel_layer"]
    grid = Grid.of(layer["point_cloud_range"], layer["voxel_size"], layer["max_num_points"], layer["max_voxels"])
    return _built(parts, grid, parts["bbox_head"]["num_classes"])


def _scaled(width: float, factor: float) -> int:
    found = round(width * factor)
    if found < 1:
        raise ConfigError(f"width {width} leaves no channel in a layer of {factor} times it; choose a larger one")
    return found


def _head(
    channels: int,
    grid: Grid,
    anchors: str | Sequence[Mapping[str, Any]],
    num_classes: int,
    name: str,
    test_options: Mapping[str, Any],
    *,
    aligned: bool,
) -> dict[str, Any]:
    """mmdetection3d's anchor head with SECOND's losses and its configs of training and testing."""
    if isinstance(anchors, str):
        if anchors not in ANCHORS:
            raise UnknownName("anchors", anchors, ANCHORS, f"of {name}")
        anchors = ANCHORS[anchors]
    if len(anchors) != num_classes:
        raise ConfigError(f"{name} has {num_classes} classes and {len(anchors)} anchors; give one for each class")
    low_x, low_y, _, high_x, high_y, _ = grid.point_cloud_range
    head = dict(
        type="Anchor3DHead",
        num_classes=num_classes,
        in_channels=channels,
        feat_channels=channels,
        use_direction_classifier=True,
        assign_per_class=True,
        anchor_generator=dict(
            type="AlignedAnchor3DRangeGenerator" if aligned else "Anchor3DRangeGenerator",
            ranges=[[low_x, low_y, one["z"], high_x, high_y, one["z"]] for one in anchors],
            sizes=[list(one["size"]) for one in anchors],
            rotations=[0, 1.57],
            reshape_out=False,
        ),
        diff_rad_by_sin=True,
        bbox_coder=dict(type="DeltaXYZWLHRBBoxCoder"),
        loss_cls=dict(type="mmdet.FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type="mmdet.SmoothL1Loss", beta=1.0 / 9.0, loss_weight=2.0),
        loss_dir=dict(type="mmdet.CrossEntropyLoss", use_sigmoid=False, loss_weight=0.2),
    )
    assigners = [
        dict(
            type="Max3DIoUAssigner",
            iou_calculator=dict(type="mmdet3d.BboxOverlapsNearest3D"),
            pos_iou_thr=one["positive"],
            neg_iou_thr=one["negative"],
            min_pos_iou=one["negative"],
            ignore_iof_thr=-1,
        )
        for one in anchors
    ]
    train = dict(assigner=assigners, allowed_border=0, pos_weight=-1, debug=False)
    return dict(bbox_head=head, train_cfg=train, test_cfg=_test_cfg(**_known(test_options, name)))


def _known(options: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    known = list(signature(_test_cfg).parameters)
    for option in options:
        if option not in known:
            raise UnknownName(f"key of model {name}:", option, known)
    return options


def _test_cfg(
    use_rotate_nms: bool = True,
    nms_thr: float = 0.01,
    score_thr: float = 0.1,
    nms_pre: int = 100,
    max_num: int = 50,
) -> dict[str, Any]:
    """What mmdetection3d makes boxes by.

    Args:
        use_rotate_nms: suppress by the overlap of rotated boxes; False by that of boxes whose yaw is set to 0, which
            takes one of two cars that drive abreast along y for a duplicate.
        nms_thr: the overlap in bird's-eye view above which the weaker box of a class goes.
        score_thr: the lowest score of a box.
        nms_pre, max_num: the most boxes before and after suppression.
    """
    return dict(
        use_rotate_nms=use_rotate_nms,
        nms_across_levels=False,
        nms_thr=nms_thr,
        score_thr=score_thr,
        min_bbox_size=0,
        nms_pre=nms_pre,
        max_num=max_num,
    )


def _built(config: Mapping[str, Any], grid: Grid, num_classes: int, *, two_stages: bool = False) -> nn.Module:
    require("mmdet3d", "a detector on point clouds", "pointcloud")
    from limbeck.engine.mmcv_ops import install

    install()
    from limbeck.pointcloud._detector import VoxelDetector, build_detector
    from limbeck.pointcloud._point_detector import PointDetector

    return build_detector(config, grid, num_classes, PointDetector if two_stages else VoxelDetector)
