"""mmcv's operators on rotated boxes, in torch; intersections are exact polygons in float64."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from limbeck.engine._mmcv_boxes import nms

_PAIRS_AT_ONCE = 32_768  # bounds the working memory to some tens of megabytes
_ROWS_AT_ONCE = 1_024
_SLACK = 1e-12  # of the boxes' extent: keeps edges that coincide up to rounding
_NO_AREA = 1e-14  # mmcv's bound below which a box overlaps nothing


def _corners(boxes: Tensor) -> Tensor:
    """Corners (P, 4, 2), counter-clockwise, of boxes (P, 5) as (x, y, w, h, angle)."""
    unit = boxes.new_tensor([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    local = unit * boxes[:, None, 2:4]
    cos, sin = boxes[:, 4:].cos(), boxes[:, 4:].sin()
    turned = torch.stack([cos * local[..., 0] - sin * local[..., 1], sin * local[..., 0] + cos * local[..., 1]], -1)
    return turned + boxes[:, None, :2]


def _clip_edges(corners: Tensor, clip: Tensor, slack: Tensor) -> tuple[Tensor, Tensor]:
    """Ends of the parts of one box's edges within another box (Cyrus–Beck).

    Args:
        corners, clip: (P, 4, 2), counter-clockwise.
        slack: (P, 1, 1), distance by which `clip` is widened.
    Returns: points (P, 8, 2) and whether each exists (P, 8).
    """
    sides = clip.roll(-1, 1) - clip
    inward = torch.stack([-sides[..., 1], sides[..., 0]], -1) / sides.norm(dim=-1, keepdim=True)
    depth = ((corners[:, :, None] - clip[:, None]) * inward[:, None]).sum(-1) + slack  # (P, corner, side)
    following = depth.roll(-1, 1)
    crossing = depth / (depth - following)
    enters = torch.where(depth < 0, torch.where(following < 0, torch.inf, crossing), 0.0).amax(-1)
    leaves = torch.where((following < 0) & (depth >= 0), crossing, 1.0).amin(-1)
    exists = enters <= leaves
    edges = corners.roll(-1, 1) - corners
    ends = torch.cat([corners + edges * t[..., None] for t in (enters, leaves)], 1)
    return ends, torch.cat([exists, exists], 1)


def _convex_area(points: Tensor, exists: Tensor) -> Tensor:
    """Area (P,) of the convex polygon whose corners and edge points (P, K, 2) come in any order, with repeats."""
    count = exists.sum(1).clamp(min=1)[:, None]
    centre = torch.where(exists[..., None], points, 0.0).sum(1) / count
    offset = torch.where(exists[..., None], points - centre[:, None], 0.0)
    angle = torch.atan2(offset[..., 1], offset[..., 0]).masked_fill(~exists, torch.inf)
    angle, order = angle.sort(1)
    ring = offset.gather(1, order[..., None].expand_as(offset))
    ring = torch.where(angle[..., None].isinf(), ring[:, :1], ring)  # repeating a corner adds nothing
    following = ring.roll(-1, 1)
    return (ring[..., 0] * following[..., 1] - ring[..., 1] * following[..., 0]).sum(1).abs() / 2


def _intersect(a: Tensor, b: Tensor) -> Tensor:
    middle = (a[:, :2] + b[:, :2]) / 2  # small coordinates keep precision far from the origin
    box_a, box_b = (_corners(torch.cat([x[:, :2] - middle, x[:, 2:]], 1)) for x in (a, b))
    slack = (_SLACK * (a[:, 2:4].norm(dim=1) + b[:, 2:4].norm(dim=1)))[:, None, None]
    ends = [_clip_edges(box_a, box_b, slack), _clip_edges(box_b, box_a, slack)]
    return _convex_area(torch.cat([points for points, _ in ends], 1), torch.cat([exists for _, exists in ends], 1))


def rotated_intersection(a: Tensor, b: Tensor) -> Tensor:
    """Area shared by matching rotated boxes.

    Args:
        a, b: (P, 5) as (x, y, w, h, angle in radians, turning x towards y).
    Returns: float64 (P,); 0 where a box has no area.
    """
    a, b = a.double(), b.double()
    area = torch.minimum(a[:, 2] * a[:, 3], b[:, 2] * b[:, 3])
    parts = [_intersect(x, y) for x, y in zip(a.split(_PAIRS_AT_ONCE), b.split(_PAIRS_AT_ONCE))]
    shared = torch.cat(parts) if parts else area
    return torch.where(area > 0, torch.minimum(shared, area), 0.0)


def _near_pairs(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (P,), (P,) of the pairs of (N, 5) and (M, 5) boxes whose circumcircles meet; all others share nothing."""
    a, b = a.double(), b.double()
    radius_a, radius_b = a[:, 2:4].norm(dim=1) / 2, b[:, 2:4].norm(dim=1) / 2
    found = []
    for start in range(0, len(a), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        distance = torch.hypot(a[rows, None, 0] - b[:, 0], a[rows, None, 1] - b[:, 1])
        found.append((distance <= radius_a[rows, None] + radius_b).nonzero() + a.new_tensor([start, 0]).long())
    pairs = torch.cat(found) if found else torch.empty(0, 2, dtype=torch.long, device=a.device)
    return pairs[:, 0], pairs[:, 1]


def _iou(a: Tensor, b: Tensor, *, over_first: bool = False) -> Tensor:
    """IoU, or the share of `a`, of matching boxes (P, 5), as float64 (P,)."""
    shared = rotated_intersection(a, b)
    area_a, area_b = ((x[:, 2] * x[:, 3]).double() for x in (a, b))
    whole = area_a if over_first else area_a + area_b - shared
    return torch.where(torch.minimum(area_a, area_b) < _NO_AREA, 0.0, shared / whole)


def box_iou_rotated(boxes1: Tensor, boxes2: Tensor, ious: Tensor, mode_flag: int, aligned: bool) -> None:
    """mmcv `box_iou_rotated`: IoU (mode 0) or share of the first box (mode 1), written to `ious`.

    Args:
        boxes1, boxes2: (N, 5) and (M, 5) as (x, y, w, h, angle in radians, turning x towards y).
        ious: flat (N · M,), or (N,) when aligned.
    """
    if aligned:
        ious.copy_(_iou(boxes1, boxes2, over_first=mode_flag == 1))
        return
    i, j = _near_pairs(boxes1, boxes2)
    ious.zero_()
    ious.view(-1)[i * len(boxes2) + j] = _iou(boxes1[i], boxes2[j], over_first=mode_flag == 1).to(ious.dtype)


def _greedy(boxes: Tensor, threshold: float, labels: Tensor | None = None) -> Tensor:
    """Indices kept of boxes (N, 5), best first, when each removes the later ones of its label above the threshold."""
    i, j = _near_pairs(boxes, boxes)
    wanted = i < j if labels is None else (i < j) & (labels[i] == labels[j])
    i, j = i[wanted], j[wanted]
    hit = _iou(boxes[i], boxes[j]) > threshold
    # The pairs come sorted by i, so each box's victims are one slice.
    first, second = i[hit].cpu().numpy(), j[hit].cpu().numpy()
    bounds = np.searchsorted(first, np.arange(len(boxes) + 1))
    alive = np.ones(len(boxes), dtype=bool)
    for box in np.unique(first):
        if alive[box]:
            alive[second[bounds[box] : bounds[box + 1]]] = False
    return torch.from_numpy(alive.nonzero()[0]).to(boxes.device)


def nms_rotated(
    dets: Tensor,
    scores: Tensor,
    order: Tensor,
    dets_sorted: Tensor,
    labels: Tensor,
    iou_threshold: float,
    multi_label: bool,
) -> Tensor:
    """mmcv `nms_rotated`: indices (K,) kept, best first; IoU above the threshold suppresses within a label.

    This is what mmcv documents and its CUDA kernel does; its CPU kernel ignores labels and suppresses at equality too.

    Args:
        dets_sorted: (N, 5) as (x, y, w, h, angle), or (N, 6) with a label, by descending score.
        order: (N,), where each sorted box stood.
    """
    kept = _greedy(dets_sorted[:, :5], iou_threshold, dets_sorted[:, 5] if multi_label else None)
    return order[kept]


def _bird_eye(boxes: Tensor) -> Tensor:
    """(N, 5) as (x, y, dx, dy, heading) from (N, 7) as (x, y, z, dx, dy, dz, heading)."""
    return boxes[:, [0, 1, 3, 4, 6]]


def iou3d_boxes_overlap_bev_forward(boxes_a: Tensor, boxes_b: Tensor, ans_iou: Tensor) -> None:
    """mmcv `iou3d_boxes_overlap_bev_forward`: areas shared in bird's eye view, written to `ans_iou` (N, M).

    Exact, where mmcv's kernel counts corners up to 1 cm outside a box as inside.

    Args:
        boxes_a, boxes_b: (N, 7) and (M, 7) as (x, y, z, dx, dy, dz, heading).
    """
    a, b = _bird_eye(boxes_a), _bird_eye(boxes_b)
    i, j = _near_pairs(a, b)
    ans_iou.zero_()
    ans_iou[i, j] = rotated_intersection(a[i], b[j]).to(ans_iou.dtype)


def _store(kept: Tensor, keep: Tensor, num_out: Tensor) -> None:
    keep[: len(kept)] = kept
    num_out.fill_(len(kept))


def iou3d_nms3d_forward(boxes: Tensor, keep: Tensor, num_out: Tensor, nms_overlap_thresh: float) -> None:
    """mmcv `iou3d_nms3d_forward`: suppression by bird's-eye IoU; indices go to `keep`, their number to `num_out`.

    Args:
        boxes: (N, 7) as (x, y, z, dx, dy, dz, heading), by descending score.
        keep: int64 (N,); num_out: int64 scalar.
    """
    _store(_greedy(_bird_eye(boxes), nms_overlap_thresh), keep, num_out)


def iou3d_nms3d_normal_forward(boxes: Tensor, keep: Tensor, num_out: Tensor, nms_overlap_thresh: float) -> None:
    """mmcv `iou3d_nms3d_normal_forward`: as `iou3d_nms3d_forward` with every heading taken as 0."""
    half = boxes[:, 3:5] / 2
    corners = torch.cat([boxes[:, :2] - half, boxes[:, :2] + half], 1)
    rank = torch.arange(len(boxes), 0, -1, device=boxes.device)
    _store(nms(corners, rank, nms_overlap_thresh, 0), keep, num_out)
