"""The valuable localisation region: anchors near a box that are too far for a positive (LD, arXiv 2102.12252)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.detection.methods._assignment import Anchors
from limbeck.detection.targets import DetectionTargets


def overlaps(anchors: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and DIoU of every anchor with every box, (N, M) each.

    DIoU = IoU − (distance of centres)² / (diagonal of the enclosing box)² (arXiv 1911.08287).

    Args:
        anchors, boxes: x1 y1 x2 y2, (N, 4) and (M, 4), each with an area.

    >>> iou, diou = overlaps(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 3.0, 2.0]]))
    >>> round(iou.item(), 4), round(diou.item(), 4)
    (0.3333, 0.2564)
    """
    a, b = anchors[:, None], boxes[None]
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    common = (high - low).clamp(min=0).prod(2)
    union = (a[..., 2:] - a[..., :2]).prod(2) + (b[..., 2:] - b[..., :2]).prod(2) - common
    iou = common / union
    apart = ((a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2).square().sum(2)
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    return iou, iou - apart / hull.square().sum(2)


def box_thresholds(iou: Tensor, anchors: Tensor, counts: Sequence[int], boxes: Tensor, *, topk: int = 9) -> Tensor:
    """ATSS's threshold of each box: mean + unbiased deviation of its IoU with the anchors nearest by centre (M,).

    Args:
        iou: (N, M) of anchors (N, 4) with boxes (M, 4).
        counts: anchors of each level, adding up to N.
        topk: how many are taken from each level.
    """
    apart = (anchors[:, :2] + anchors[:, 2:])[:, None] - (boxes[:, :2] + boxes[:, 2:])[None]
    distance = apart.square().sum(2)
    near = [
        overlap.gather(0, d.topk(min(topk, len(d)), dim=0, largest=False).indices)
        for overlap, d in zip(iou.split(list(counts)), distance.split(list(counts)))
    ]
    return torch.cat(near).mean(0) + torch.cat(near).std(0)


def valuable_region(
    anchors: Tensor, counts: Sequence[int], boxes: Tensor, *, topk: int = 9, gamma: float = 0.25
) -> Tensor:
    """How much each anchor counts in the region: v_i, 0 outside it.

    An anchor of any level belongs to box g's region if γ t_g ≤ DIoU < t_g, with `box_thresholds`'s t_g, wherever its
    centre lies. v_i is the largest IoU with a box to whose region i belongs, above 0 as IoU ≥ DIoU. Positives have
    IoU ≥ t and may be in it.

    Args:
        anchors: (N, 4), x1 y1 x2 y2, level by level.
        counts: anchors of each level, adding up to N.
        boxes: (M, 4); M may be 0.
        topk, gamma: as ATSS's number of candidates a level; γ in [0, 1].
    Returns: (N,).
    """
    if len(boxes) == 0 or len(anchors) == 0:
        return anchors.new_zeros(len(anchors))
    iou, diou = overlaps(anchors, boxes)
    threshold = box_thresholds(iou, anchors, counts, boxes, topk=topk)
    member = (diou >= gamma * threshold) & (diou < threshold)
    return (iou * member).amax(1)


@torch.no_grad()
def batch_region(given: Anchors, targets: DetectionTargets, *, topk: int = 9, gamma: float = 0.25) -> list[Tensor]:
    """`valuable_region` of every image, (B, N_l) a level; anchors that the assigner did not see have 0."""
    anchors, counts = torch.cat(given.anchors), [len(level) for level in given.anchors]
    found = anchors.new_zeros(given.inside.shape)
    for image, inside in enumerate(given.inside):
        seen = [int(flags.sum()) for flags in inside.split(counts)]
        boxes, _ = targets.of(image)
        found[image, inside] = valuable_region(anchors[inside], seen, boxes.to(anchors), topk=topk, gamma=gamma)
    return list(found.split(counts, dim=1))
