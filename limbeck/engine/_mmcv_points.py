"""mmcv's operators on point clouds, in torch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_PAIRS_AT_ONCE = 1 << 20


def dynamic_voxelize_forward(
    points: Tensor,
    voxel_size: Tensor,
    coors_range: Tensor,
    coors: Tensor,
    NDim: int,  # noqa: N803 (mmcv passes it by this name)
) -> None:
    """mmcv `dynamic_voxelize_forward`: the voxel of each point, last axis first, written to `coors`.

    Args:
        points: (N, NDim + features).
        voxel_size: (NDim,), in the points' unit.
        coors_range: (2 · NDim,), lower corner then upper corner.
        coors: int (N, NDim), −1 throughout for a point out of range.
    """
    size, low, high = (x.to(points.device) for x in (voxel_size, coors_range[:NDim], coors_range[NDim:]))
    grid = torch.floor((high - low) / size + 0.5)  # C's round: halves go up
    cell = torch.floor((points[:, :NDim] - low) / size)
    inside = ((cell >= 0) & (cell < grid)).all(1, keepdim=True)
    coors.copy_(torch.where(inside, cell, -1.0).flip(1))


def hard_voxelize_forward(
    points: Tensor,
    voxel_size: Tensor,
    coors_range: Tensor,
    voxels: Tensor,
    coors: Tensor,
    num_points_per_voxel: Tensor,
    voxel_num: Tensor,
    max_points: int,
    max_voxels: int,
    NDim: int,  # noqa: N803
    deterministic: bool,
) -> None:
    """mmcv `hard_voxelize_forward`: points gathered by voxel, voxels in the order of their first point.

    Args:
        points: (N, F); the first `max_points` of a voxel stay.
        voxels: (max_voxels, max_points, F), coors: (max_voxels, NDim), num_points_per_voxel: (max_voxels,), and
            voxel_num: scalar; filled.
        deterministic: ignored; the result always is.
    """
    where = coors.new_empty(len(points), NDim)
    dynamic_voxelize_forward(points, voxel_size, coors_range, where, NDim)
    inside = (where[:, 0] >= 0).nonzero().squeeze(1)
    # One number a voxel: unique rows of several columns take ten times as long.
    size = where.amax(0).long() + 1 if len(where) else where.new_ones(NDim, dtype=torch.int64)
    key = where[inside, 0].long()
    for axis in range(1, NDim):
        key = key * size[axis] + where[inside, axis]
    cells, member = torch.unique(key, return_inverse=True)

    first = torch.full((len(cells),), len(points), device=points.device)
    first.scatter_reduce_(0, member, inside, "amin")
    by_arrival = first.argsort()
    rank = torch.empty_like(by_arrival)
    rank[by_arrival] = torch.arange(len(cells), device=points.device)

    member, order = rank[member].sort(stable=True)
    counts = torch.bincount(member, minlength=len(cells))
    slot = torch.arange(len(member), device=points.device) - (counts.cumsum(0) - counts)[member]
    keep = (slot < max_points) & (member < max_voxels)

    kept_voxels = min(len(cells), max_voxels)
    voxels[member[keep], slot[keep]] = points[inside[order[keep]]]
    coors[:kept_voxels] = where[first[by_arrival[:kept_voxels]]]
    num_points_per_voxel[:kept_voxels] = counts[:kept_voxels].clamp(max=max_points).to(num_points_per_voxel.dtype)
    voxel_num.fill_(kept_voxels)


def dynamic_point_to_voxel_forward(
    feats: Tensor, coors: Tensor, reduce_type: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """mmcv `dynamic_point_to_voxel_forward`: features reduced by voxel, voxels in lexicographic order.

    Args:
        feats: (N, C).
        coors: (N, D); a row with a negative entry belongs to no voxel.
        reduce_type: "max", "sum" or "mean".
    Returns: features (M, C), voxels (M, D), the voxel of each point or −1, int (N,), and points a voxel, int (M,).
    """
    if not len(feats):
        none = coors.new_empty(0, dtype=torch.int32)
        return feats.clone(), coors.clone(), none, none.clone()
    outside = (coors < 0).any(1)
    cells, member = torch.unique(coors[~outside], dim=0, return_inverse=True)
    counts = torch.bincount(member, minlength=len(cells))
    reduced = feats.new_zeros(len(cells), feats.shape[1])
    index = member[:, None].expand(-1, feats.shape[1])
    how = {"max": "amax", "sum": "sum", "mean": "mean"}[reduce_type]
    reduced.scatter_reduce_(0, index, feats[~outside], how, include_self=False)
    point_to_voxel = torch.full_like(outside, -1, dtype=torch.int32)
    point_to_voxel[~outside] = member.int()
    return reduced, cells, point_to_voxel, counts.int()


def dynamic_point_to_voxel_backward(
    grad_feats: Tensor,
    grad_reduced_feats: Tensor,
    feats: Tensor,
    reduced_feats: Tensor,
    coors_idx: Tensor,
    reduce_count: Tensor,
    reduce_type: str,
) -> None:
    """mmcv `dynamic_point_to_voxel_backward`: gradient for the points (N, C), written to `grad_feats`.

    A maximum that several points share sends its gradient to the first of them.
    """
    grad_feats.zero_()
    points = (coors_idx >= 0).nonzero().squeeze(1)
    member = coors_idx[points].long()
    if reduce_type != "max":
        share = reduce_count[member, None].to(grad_feats.dtype) if reduce_type == "mean" else 1
        grad_feats[points] = grad_reduced_feats[member] / share
        return
    nobody = len(feats)
    candidate = torch.where(feats[points] == reduced_feats[member], points[:, None], nobody)
    winner = torch.full_like(reduced_feats, nobody, dtype=torch.long)
    winner.scatter_reduce_(0, member[:, None].expand_as(candidate), candidate, "amin")
    voxel, channel = (winner < nobody).nonzero(as_tuple=True)
    grad_feats[winner[voxel, channel], channel] = grad_reduced_feats[voxel, channel]


def inside_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """Whether points (..., M, 3) lie in boxes (..., T, 7), as (..., M, T); open sideways, closed in height.

    A box is (x, y, z of the bottom centre, sizes along x, y, z, yaw).
    """
    offset = points[..., :, None, :] - boxes[..., None, :, :3]
    size, yaw = boxes[..., None, :, 3:6], boxes[..., None, :, 6]
    cos, sin = yaw.cos(), yaw.sin()
    along = offset[..., 0] * cos + offset[..., 1] * sin
    across = offset[..., 1] * cos - offset[..., 0] * sin
    height = offset[..., 2] - size[..., 2] / 2
    level = height.abs() <= size[..., 2] / 2
    return level & (along.abs() < size[..., 0] / 2) & (across.abs() < size[..., 1] / 2)


def points_in_boxes_cpu_forward(boxes_tensor: Tensor, pts_tensor: Tensor, pts_indices_tensor: Tensor) -> None:
    """mmcv `points_in_boxes_cpu_forward`: 1 where a point is in a box, written to `pts_indices_tensor`.

    Args:
        boxes_tensor: (T, 7) as (x, y, z of the bottom centre, sizes along x, y, z, yaw).
        pts_tensor: (M, 3).
        pts_indices_tensor: int (T, M).
    """
    for rows in _blocks(len(pts_tensor), len(boxes_tensor)):
        pts_indices_tensor[:, rows] = inside_boxes(pts_tensor[rows], boxes_tensor).T.to(pts_indices_tensor.dtype)


def points_in_boxes_all_forward(boxes_tensor: Tensor, pts_tensor: Tensor, box_idx_of_points_tensor: Tensor) -> None:
    """mmcv `points_in_boxes_all_forward`: 1 where a point is in a box, int (B, M, T), written to the last argument.

    Args:
        boxes_tensor: (B, T, 7), pts_tensor: (B, M, 3); as for `points_in_boxes_cpu_forward`.
    """
    for boxes, points, found in zip(boxes_tensor, pts_tensor, box_idx_of_points_tensor):
        for rows in _blocks(len(points), len(boxes)):
            found[rows] = inside_boxes(points[rows], boxes).to(found.dtype)


def points_in_boxes_part_forward(boxes_tensor: Tensor, pts_tensor: Tensor, box_idx_of_points_tensor: Tensor) -> None:
    """mmcv `points_in_boxes_part_forward`: index of the first box around each point, int (B, M).

    Args:
        boxes_tensor: (B, T, 7), pts_tensor: (B, M, 3); as for `points_in_boxes_cpu_forward`.
        box_idx_of_points_tensor: keeps its value (−1 from mmcv) where a point is in no box.
    """
    if not boxes_tensor.shape[1]:
        return
    for boxes, points, index in zip(boxes_tensor, pts_tensor, box_idx_of_points_tensor):
        for rows in _blocks(len(points), len(boxes)):
            found, first = inside_boxes(points[rows], boxes).max(-1)
            index[rows] = torch.where(found, first.to(index.dtype), index[rows])


def _blocks(points: int, boxes: int) -> Iterator[slice]:
    """Slices of the points; PointRCNN tests all of its 16,384 against a box each, of which a copy would take 1 GB."""
    step = max(_PAIRS_AT_ONCE // max(boxes, 1), 1)
    return (slice(start, start + step) for start in range(0, points, step))
