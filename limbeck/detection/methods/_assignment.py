"""The student's own assignment of anchors or points to boxes, as mmdetection's head makes it for its losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.detection.targets import DetectionTargets, mmdet_samples
from limbeck.errors import ConfigError

Sizes = Sequence[tuple[int, int]]
AVERAGED = ("GFLHead", "LDHead", "ATSSHead")  # heads that average their number of positives over processes


@dataclass(slots=True)
class Anchors:
    """Which anchors a batch trains, level by level; N_l = H_l · W_l · A, cells row by row and A innermost.

    labels: (B, N_l) int64, the number of classes for background.
    weights: (B, N_l), label weights; 0 for anchors that take no part.
    anchors: (N_l, 4), x1 y1 x2 y2 in pixels, the same for every image.
    inside: (B, N) bool over all levels, anchors that the assigner saw.
    positives: the number that mmdetection divides by: at least 1 an image, averaged over processes where it does so.
    """

    labels: list[Tensor]
    weights: list[Tensor]
    anchors: list[Tensor]
    inside: Tensor
    positives: float


def check_targets(what: str, targets: Any) -> DetectionTargets:
    """The targets, where they have boxes.

    Raises: ConfigError otherwise.
    """
    if not isinstance(targets, DetectionTargets):
        raise ConfigError(
            f"{what} assigns anchors to ground-truth boxes; got targets {type(targets).__name__}: use a data set for "
            "detection"
        )
    return targets


@torch.no_grad()
def assign_anchors(head: Any, sizes: Sizes, targets: DetectionTargets) -> Anchors:
    """What a head with anchors (GFL, ATSS, RetinaNet) is to predict where.

    Args:
        head: mmdetection's, with its training config.
        sizes: height and width of each level.
    """
    from mmdet.models.task_modules.prior_generators import anchor_inside_flags
    from mmdet.models.utils import unpack_gt_instances

    device = targets.boxes.device
    objects, crowds, metas = unpack_gt_instances(mmdet_samples(targets.shapes, targets.input_shape, targets))
    grid, flags = head.get_anchors(list(sizes), metas, device=device)
    anchors = list(grid[0])
    border, whole = head.train_cfg["allowed_border"], torch.cat(anchors)
    inside = [
        anchor_inside_flags(whole, torch.cat(list(valid)), meta["img_shape"], border)
        for valid, meta in zip(flags, metas)
    ]
    found = head.get_targets(grid, flags, objects, metas, batch_gt_instances_ignore=crowds)
    # GFL's and ATSS's have the anchors first.
    labels, weights = found[1:3] if len(found) == 6 else found[:2]
    positives = torch.tensor(float(found[-1]), device=device)
    if type(head).__name__ in AVERAGED:
        positives = mean_of_processes(positives)
    return Anchors(list(labels), list(weights), anchors, torch.stack(inside), positives.item())


@torch.no_grad()
def centerness_total(head: Any, sizes: Sizes, targets: DetectionTargets) -> float:
    """Σ of FCOS's centerness targets over the positives, averaged over processes; at least 1e-6, and 1 without any.

    The 1 is ours: mmdetection divides by 1e-6 there, which its data sets avoid by leaving out images without objects.
    """
    from mmdet.models.utils import unpack_gt_instances

    objects, _, _ = unpack_gt_instances(mmdet_samples(targets.shapes, targets.input_shape, targets))
    points = head.prior_generator.grid_priors(list(sizes), device=targets.boxes.device)
    labels, distances = (torch.cat(parts) for parts in head.get_targets(points, objects))
    positive = (labels >= 0) & (labels < head.num_classes)
    total = mean_of_processes(head.centerness_target(distances[positive]).sum()).item()
    return max(total, 1e-6) if total > 0 else 1.0


def mean_of_processes(value: Tensor) -> Tensor:
    """The value itself in a run of one process."""
    from mmdet.utils import reduce_mean

    return reduce_mean(value)
