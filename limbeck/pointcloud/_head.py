"""From an anchor head's raw outputs to boxes: before any suppression as a tap, after it as padded predictions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from limbeck.pointcloud.samples import BOX

MOST_DECODED = 256  # boxes of a cloud that are offered as a tap


@torch.no_grad()
def decoded_boxes(head: Any, outputs: Any, most: int = MOST_DECODED) -> Tensor:
    """An anchor head's boxes of the highest scores, each with its best class, before any suppression.

    Args:
        head: mmdetection3d's Anchor3DHead with sigmoid scores.
        outputs: what it gives of one map.
    Returns: (B, most, 9), best first: x, y, z of the bottom centre, length, width, height, yaw, score, label; rows
        that there are no anchors for are 0 with label −1.
    """
    from mmdet3d.structures import limit_period

    logits, codes, directions = (part[0].detach().permute(0, 2, 3, 1).flatten(1) for part in outputs)
    clouds, size = len(logits), outputs[0][0].shape[-2:]
    (anchors,) = head.prior_generator.grid_anchors([size], device=logits.device)
    best, labels = logits.reshape(clouds, -1, head.num_classes).sigmoid().max(-1)
    scores, chosen = best.topk(min(most, best.shape[1]), dim=1)

    def rows(part: Tensor, width: int) -> Tensor:
        whole = part.reshape(clouds, -1, width)
        return whole.gather(1, chosen[..., None].expand(-1, -1, width))

    priors = anchors.reshape(-1, BOX)[chosen]
    boxes = head.bbox_coder.decode(priors.flatten(0, 1), rows(codes, BOX).flatten(0, 1)).reshape(priors.shape)
    half_turn = rows(directions, 2).argmax(-1) * math.pi
    turned = limit_period(boxes[..., 6] - head.dir_offset, head.dir_limit_offset, math.pi)
    boxes[..., 6] = turned + head.dir_offset + half_turn
    found = boxes.new_zeros(clouds, most, BOX + 2)
    found[..., -1] = -1
    columns = (boxes, scores[..., None], labels.gather(1, chosen)[..., None].to(boxes))
    found[:, : scores.shape[1]] = torch.cat(columns, -1)
    return found


def padded_boxes(results: Sequence[Any], device: torch.device) -> dict[str, Tensor]:
    """Boxes, scores and classes of clouds in one array each, best first."""
    most = max([1, *(len(one.scores_3d) for one in results)])
    boxes = torch.zeros(len(results), most, BOX, device=device)
    scores = torch.zeros(len(results), most, device=device)
    pred = torch.full((len(results), most), -1, device=device)
    for row, one in enumerate(results):
        order = one.scores_3d.argsort(descending=True, stable=True)
        boxes[row, : len(order)] = one.bboxes_3d.tensor[order].to(boxes)
        scores[row, : len(order)] = one.scores_3d[order].to(scores)
        pred[row, : len(order)] = one.labels_3d[order]
    return dict(boxes=boxes, scores=scores, pred=pred)
