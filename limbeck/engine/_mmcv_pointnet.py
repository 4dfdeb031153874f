"""mmcv's operators of PointNet++ (arXiv 1706.02413) and of PointRCNN's RoI pooling (arXiv 1812.04244), in torch.

The sizes among the arguments (`b`, `c`, `n`, `m`, `npoints`) are there because mmcv passes them; the tensors tell them.
Where points are equally far, the one of lowest index is taken; of compiled operators the threads decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from limbeck.engine._mmcv_points import inside_boxes

_PAIRS_AT_ONCE = 1 << 21
"""Distances held at a time: PointRCNN's 16,384 points against each other would take 1 GB a copy."""


def _squared_distances(centers: Tensor, points: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Squared distances (b, m, N) of centers (B, M, 3) to points (B, N, 3), by blocks of clouds and of centers.

    Differences are squared, not expanded: a point has to be at distance 0 from itself.
    """
    batch, rows, columns = len(centers), centers.shape[1], max(points.shape[1], 1)
    clouds = max(_PAIRS_AT_ONCE // max(rows * columns, 1), 1)
    step = max(_PAIRS_AT_ONCE // columns, 1)
    for cloud in (slice(start, start + clouds) for start in range(0, batch, clouds)):
        for row in (slice(start, start + step) for start in range(0, rows, step)):
            x, y, z = (centers[cloud, row, None, k] - points[cloud, None, :, k] for k in range(3))
            yield cloud, row, x.square_().add_(y.square_()).add_(z.square_())


def _first_hits(hit: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Columns of the first `limit` true entries of each row (R, N), int64 (R, limit), 0 beyond; and how many, (R,)."""
    row, column = hit.nonzero(as_tuple=True)
    counts = hit.sum(1)
    slot = torch.arange(len(row), device=hit.device) - (counts.cumsum(0) - counts)[row]
    keep = slot < limit
    found = torch.zeros(len(hit), limit, dtype=torch.long, device=hit.device)
    found[row[keep], slot[keep]] = column[keep]
    return found, counts.clamp(max=limit)


def _sample_furthest(distances_to: Callable[[Tensor], Tensor], nearest: Tensor, index: Tensor) -> None:
    """Fill `index` (B, M): the first point, then each time the one furthest from all before it.

    Args:
        distances_to: of points given by index (B,), squared distances (B, N) to all points.
        nearest: (B, N), squared distance to the nearest sample; updated.
    """
    last = torch.zeros(len(index), dtype=torch.long, device=index.device)
    for step in range(index.shape[1]):
        index[:, step] = last
        if step + 1 < index.shape[1]:
            torch.minimum(nearest, distances_to(last), out=nearest)
            last = nearest.argmax(1)


def furthest_point_sampling_forward(
    points_tensor: Tensor, temp_tensor: Tensor, idx_tensor: Tensor, b: int, n: int, m: int
) -> None:
    """mmcv `furthest_point_sampling_forward`: m points, each the furthest from those before, from point 0 on.

    Args:
        points_tensor: (B, N, 3).
        temp_tensor: (B, N), large; holds the squared distance to the nearest sample but the last afterwards.
        idx_tensor: int (B, M), filled; 0 again and again once every point is at a sample.
    """
    clouds = torch.arange(b, device=points_tensor.device)
    x, y, z = (points_tensor[..., k].contiguous() for k in range(3))

    def distances_to(index: Tensor) -> Tensor:
        dx, dy, dz = (axis - axis[clouds, index, None] for axis in (x, y, z))
        return dx.square_().add_(dy.square_()).add_(dz.square_())

    _sample_furthest(distances_to, temp_tensor, idx_tensor)


def furthest_point_sampling_with_dist_forward(
    points_tensor: Tensor, temp_tensor: Tensor, idx_tensor: Tensor, b: int, n: int, m: int
) -> None:
    """mmcv `furthest_point_sampling_with_dist_forward`: the same from the distances (B, N, N) in `points_tensor`."""
    clouds = torch.arange(b, device=points_tensor.device)
    _sample_furthest(lambda index: points_tensor[clouds, index], temp_tensor, idx_tensor)


def ball_query_forward(
    new_xyz_tensor: Tensor,
    xyz_tensor: Tensor,
    idx_tensor: Tensor,
    b: int,
    n: int,
    m: int,
    min_radius: float,
    max_radius: float,
    nsample: int,
) -> None:
    """mmcv `ball_query_forward`: the first `nsample` points around each center, the first of them in free places.

    A point is in where min_radius² <= d² < max_radius², and always where d = 0.

    Args:
        new_xyz_tensor: centers, (B, M, 3), xyz_tensor: points, (B, N, 3).
        idx_tensor: int (B, M, nsample), filled; keeps its value (0 from mmcv) where no point is in.
    """
    low, high = (float(np.square(np.float32(radius))) for radius in (min_radius, max_radius))
    for cloud, row, squared in _squared_distances(new_xyz_tensor, xyz_tensor):
        hit = squared < high
        if low > 0:
            hit &= (squared >= low) | (squared == 0)
        index, counts = _first_hits(hit.flatten(0, 1), nsample)
        free = torch.arange(nsample, device=index.device) >= counts[:, None]
        index = torch.where(free, index[:, :1], index).view(*squared.shape[:2], nsample)
        anything = (counts > 0).view(*squared.shape[:2], 1)
        idx_tensor[cloud, row] = torch.where(anything, index.to(idx_tensor.dtype), idx_tensor[cloud, row])


def knn_forward(
    xyz_tensor: Tensor,
    new_xyz_tensor: Tensor,
    idx_tensor: Tensor,
    dist2_tensor: Tensor,
    b: int,
    n: int,
    m: int,
    nsample: int,
) -> None:
    """mmcv `knn_forward`: the `nsample` points nearest to each center, from near to far.

    Args:
        xyz_tensor: points, (B, N, 3), new_xyz_tensor: centers, (B, M, 3).
        idx_tensor: int (B, M, nsample), dist2_tensor: squared distances, same shape; filled. Where there are fewer
            points, the rest is index 0 at 1e10.
    """
    _nearest(new_xyz_tensor, xyz_tensor, idx_tensor, dist2_tensor, missing=1e10)


def three_nn_forward(
    unknown_tensor: Tensor, known_tensor: Tensor, dist2_tensor: Tensor, idx_tensor: Tensor, b: int, n: int, m: int
) -> None:
    """mmcv `three_nn_forward`: the three known points nearest to each unknown one, from near to far.

    Args:
        unknown_tensor: (B, N, 3), known_tensor: (B, M, 3).
        dist2_tensor: squared distances, (B, N, 3), idx_tensor: int (B, N, 3); filled. Where fewer are known, the rest
            is index 0 at infinity.
    """
    _nearest(unknown_tensor, known_tensor, idx_tensor, dist2_tensor, missing=float("inf"))


def _nearest(centers: Tensor, points: Tensor, index: Tensor, squared: Tensor, missing: float) -> None:
    """Fill `index` and `squared` (B, M, K) by K sweeps: unlike topk, `min` settles ties, and K is small."""
    index.zero_()
    squared.fill_(missing)
    for cloud, row, block in _squared_distances(centers, points):
        for k in range(min(index.shape[2], points.shape[1])):
            found, where = block.min(-1, keepdim=True)
            squared[cloud, row, k], index[cloud, row, k] = found[..., 0], where[..., 0].to(index.dtype)
            block.scatter_(-1, where, float("inf"))


def _gather(features: Tensor, index: Tensor) -> Tensor:
    """Features (B, C, N) at index (B, M), as (B, C, M)."""
    return features.gather(2, index.long()[:, None].expand(-1, features.shape[1], -1))


def _scatter(grad: Tensor, index: Tensor, grad_features: Tensor) -> None:
    """Add the gradient (B, C, M) of `_gather`'s result to that of the features, (B, C, N)."""
    grad_features.scatter_add_(2, index.long()[:, None].expand_as(grad), grad)


def gather_points_forward(
    points_tensor: Tensor, idx_tensor: Tensor, out_tensor: Tensor, b: int, c: int, n: int, npoints: int
) -> None:
    """mmcv `gather_points_forward`: features (B, C, N) at int (B, M), written to `out_tensor` (B, C, M)."""
    out_tensor.copy_(_gather(points_tensor, idx_tensor))


def gather_points_backward(
    grad_out_tensor: Tensor, idx_tensor: Tensor, grad_points_tensor: Tensor, b: int, c: int, n: int, npoints: int
) -> None:
    """mmcv `gather_points_backward`: gradient for the features, added to `grad_points_tensor` (B, C, N)."""
    _scatter(grad_out_tensor, idx_tensor, grad_points_tensor)


def group_points_forward(
    points_tensor: Tensor, idx_tensor: Tensor, out_tensor: Tensor, b: int, c: int, n: int, npoints: int, nsample: int
) -> None:
    """mmcv `group_points_forward`: features (B, C, N) at int (B, M, S), written to `out_tensor` (B, C, M, S)."""
    out_tensor.copy_(_gather(points_tensor, idx_tensor.flatten(1)).view_as(out_tensor))


def group_points_backward(
    grad_out_tensor: Tensor,
    idx_tensor: Tensor,
    grad_points_tensor: Tensor,
    b: int,
    c: int,
    n: int,
    npoints: int,
    nsample: int,
) -> None:
    """mmcv `group_points_backward`: gradient for the features, added to `grad_points_tensor` (B, C, N)."""
    _scatter(grad_out_tensor.flatten(2), idx_tensor.flatten(1), grad_points_tensor)


def three_interpolate_forward(
    points_tensor: Tensor,
    idx_tensor: Tensor,
    weight_tensor: Tensor,
    out_tensor: Tensor,
    b: int,
    c: int,
    m: int,
    n: int,
) -> None:
    """mmcv `three_interpolate_forward`: weighted sum of features at three indices, written to `out_tensor` (B, C, N).

    Args:
        points_tensor: features, (B, C, M), idx_tensor: int (B, N, 3), weight_tensor: (B, N, 3).
    """
    out_tensor.zero_()
    for k in range(3):
        out_tensor.addcmul_(_gather(points_tensor, idx_tensor[..., k]), weight_tensor[:, None, :, k])


def three_interpolate_backward(
    grad_out_tensor: Tensor,
    idx_tensor: Tensor,
    weight_tensor: Tensor,
    grad_points_tensor: Tensor,
    b: int,
    c: int,
    n: int,
    m: int,
) -> None:
    """mmcv `three_interpolate_backward`: gradient for the features, added to `grad_points_tensor` (B, C, M)."""
    for k in range(3):
        _scatter(grad_out_tensor * weight_tensor[:, None, :, k], idx_tensor[..., k], grad_points_tensor)


def roipoint_pool3d_forward(
    xyz: Tensor, boxes3d: Tensor, pts_feature: Tensor, pooled_features: Tensor, pooled_empty_flag: Tensor
) -> None:
    """mmcv `roipoint_pool3d_forward`: the first S points in each box, in turn again until all S places are filled.

    Args:
        xyz: points, (B, N, 3), boxes3d: (B, M, 7) from their bottom centre, pts_feature: (B, N, C).
        pooled_features: (B, M, S, 3 + C), filled with the points and their features; untouched for a box without.
        pooled_empty_flag: int (B, M), 1 for a box without points, otherwise untouched.
    """
    samples = pooled_features.shape[2]
    places = torch.arange(samples, device=xyz.device)
    step = max(_PAIRS_AT_ONCE // max(xyz.shape[1], 1), 1)
    for cloud, (points, boxes) in enumerate(zip(xyz, boxes3d)):
        values = torch.cat([points, pts_feature[cloud]], 1)
        for start in range(0, len(boxes), step):
            inside = inside_boxes(points, boxes[start : start + step])
            index, counts = _first_hits(inside.T, samples)
            index = index.gather(1, places % counts.clamp(min=1)[:, None])
            full = counts.nonzero().squeeze(1)
            pooled_features[cloud, start + full] = values[index[full]]
            pooled_empty_flag[cloud, start : start + step][counts == 0] = 1
