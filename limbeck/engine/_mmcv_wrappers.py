"""mmcv's Python wrappers that ask for a CUDA device whatever their tensors are on, without that demand."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import torch
from torch import Tensor


def _ext() -> Any:
    return sys.modules["mmcv._ext"]


def _sample_furthest(ctx: Any, points_xyz: Tensor, num_points: int) -> Tensor:
    """Forward of mmcv's `furthest_point_sample`: int (B, num_points), indices into points (B, N, 3)."""
    batch, count = points_xyz.shape[:2]
    index = points_xyz.new_zeros((batch, num_points), dtype=torch.int32)
    nearest = points_xyz.new_full((batch, count), 1e10)
    _ext().furthest_point_sampling_forward(points_xyz.contiguous(), nearest, index, b=batch, n=count, m=num_points)
    ctx.mark_non_differentiable(index)
    return index


def _nearest(ctx: Any, k: int, xyz: Tensor, center_xyz: Tensor | None = None, transposed: bool = False) -> Tensor:
    """Forward of mmcv's `knn`: int (B, k, M), indices into points (B, N, 3), or (B, 3, N) when `transposed`."""
    centers = xyz if center_xyz is None else center_xyz
    if transposed:
        xyz, centers = xyz.transpose(1, 2), centers.transpose(1, 2)
    (batch, count), rows = xyz.shape[:2], centers.shape[1]
    index = xyz.new_zeros((batch, rows, k), dtype=torch.int32)
    squared = xyz.new_zeros((batch, rows, k))
    points = xyz.contiguous(), centers.contiguous()
    _ext().knn_forward(*points, index, squared, b=batch, n=count, m=rows, nsample=k)
    index = index.transpose(1, 2).contiguous()
    ctx.mark_non_differentiable(index)
    return index


def points_in_boxes_part(points: Tensor, boxes: Tensor) -> Tensor:
    """mmcv's `points_in_boxes_part`: the first box (B, T, 7) around each point (B, M, 3), int (B, M), −1 for none."""
    _check(points, boxes)
    index = points.new_full(points.shape[:2], -1, dtype=torch.int32)
    _ext().points_in_boxes_part_forward(boxes.contiguous(), points.contiguous(), index)
    return index


def points_in_boxes_all(points: Tensor, boxes: Tensor) -> Tensor:
    """mmcv's `points_in_boxes_all`: 1 where a point (B, M, 3) is in a box (B, T, 7), int (B, M, T)."""
    _check(points, boxes)
    found = points.new_zeros((*points.shape[:2], boxes.shape[1]), dtype=torch.int32)
    _ext().points_in_boxes_all_forward(boxes.contiguous(), points.contiguous(), found)
    return found


def _check(points: Tensor, boxes: Tensor) -> None:
    if len(points) != len(boxes) or points.shape[2] != 3 or boxes.shape[2] != 7:
        given = f"{tuple(points.shape)} and {tuple(boxes.shape)}"
        raise ValueError(f"points are (B, M, 3) and boxes (B, T, 7) of the same B; got {given}")


def replace_wrappers() -> None:
    """Put these in place of mmcv's; only before mmdet3d, which holds on to `points_in_boxes_*`, is imported."""
    import_module("mmcv.ops.furthest_point_sample").FurthestPointSampling.forward = staticmethod(_sample_furthest)
    import_module("mmcv.ops.knn").KNN.forward = staticmethod(_nearest)
    for module in (import_module("mmcv.ops"), import_module("mmcv.ops.points_in_boxes")):
        for function in (points_in_boxes_part, points_in_boxes_all):
            setattr(module, function.__name__, function)
