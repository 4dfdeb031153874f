"""mmcv's operators on axis-aligned boxes, in torch and torchvision."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms as torchvision_nms


def pairwise_iou(a: Tensor, b: Tensor, *, offset: int = 0, over_first: bool = False) -> Tensor:
    """Overlap of boxes that broadcast against each other, (..., 4) each as (x1, y1, x2, y2).

    Args:
        offset: 1 where coordinates are pixel indices, so that a box is x2 − x1 + 1 wide.
        over_first: divide by the area of `a` (mmcv's "iof") and not by the union.
    """
    size = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2]) + offset).clamp(min=0)
    shared = size[..., 0] * size[..., 1]
    area_a, area_b = ((x[..., 2] - x[..., 0] + offset) * (x[..., 3] - x[..., 1] + offset) for x in (a, b))
    return shared / (area_a if over_first else area_a + area_b - shared)


def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    """mmcv `bbox_overlaps`: IoU (mode 0) or share of the first box (mode 1), written to `ious`.

    Args:
        bboxes1, bboxes2: (N, 4) and (M, 4) as (x1, y1, x2, y2).
        ious: (N, M), or (N,) when aligned.
    """
    first = bboxes1 if aligned else bboxes1[:, None]
    ious.copy_(pairwise_iou(first, bboxes2, offset=offset, over_first=mode == 1))


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """mmcv `nms`: indices (K,) of the boxes kept, best first; IoU above (not at) the threshold suppresses.

    Args:
        boxes: (N, 4) as (x1, y1, x2, y2).
        scores: (N,).
    """
    if boxes.dtype in (torch.float16, torch.bfloat16):
        boxes, scores = boxes.float(), scores.float()
    # mmcv adds the offset to both sides, which is the same as moving the lower right corner.
    boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    # torchvision compares in double precision: 0.6 would suppress at an IoU of float32(0.6), where mmcv keeps.
    threshold = torch.tensor(iou_threshold, dtype=boxes.dtype).item()
    return torchvision_nms(boxes, scores.to(boxes.dtype), threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """mmcv `softnms` (Soft-NMS, arXiv 1704.04503): indices (K,) in the order of picking; rows go to `dets`.

    Ties are broken by the lower index; mmcv's order among ties follows from its in-place swaps.

    Args:
        boxes: (N, 4) as (x1, y1, x2, y2).
        scores: (N,).
        dets: (N, 5); the first K rows become boxes with their decayed scores.
        method: 0 drops at the threshold, 1 decays linearly from it, 2 decays by a Gaussian of width `sigma`.
    """
    scores = scores.clone()
    left = torch.arange(len(boxes), device=boxes.device)
    picked: list[Tensor] = []
    while left.numel():
        place = scores[left].argmax()
        best = left[place]
        picked.append(best)
        left = left[left != best]
        iou = pairwise_iou(boxes[best], boxes[left], offset=offset)
        if method == 2:
            weight = torch.exp(-(iou * iou) / sigma)
        else:
            weight = torch.where(iou >= iou_threshold, 1 - iou if method == 1 else torch.zeros_like(iou), 1.0)
        scores[left] *= weight
        left = left[~(scores[left] < min_score)]
    if not picked:
        return left
    kept = torch.stack(picked)
    dets[: len(kept)] = torch.cat([boxes[kept], scores[kept, None]], 1)
    return kept
