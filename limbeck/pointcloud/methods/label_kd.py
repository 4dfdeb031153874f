"""Label KD: the teacher's sure boxes as further ground truth of the student (SparseKD, arXiv 2205.15156)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.pointcloud.targets import Targets3D, check_targets

CODES = 7


def joined_boxes(
    boxes: Tensor,
    labels: Tensor,
    found: Tensor,
    found_labels: Tensor,
    scores: Tensor,
    *,
    thresholds: Tensor,
    limit: int | None = 500,
    nms: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Ground truth of one cloud, then the teacher's boxes of a score above the threshold of their class, best first.

    The official code puts the teacher's boxes first, so that its limit may cut ground truth.

    Args:
        boxes, labels: ground truth (M, 7) and (M,).
        found, found_labels, scores: the teacher's, (P, 7), (P,) and (P,); a label of −1 is padding.
        thresholds: θ of each class (K,); a box counts with a score > θ.
        limit: the most boxes of a cloud; ground truth stays whole.
        nms: overlap in bird's-eye view from which on a teacher's box gives way to a better one of its class; None keeps
            all, as officially.
    Returns: boxes and labels, ground truth first and as it was.
    """
    sure = (found_labels >= 0) & (scores > thresholds.to(scores)[found_labels.clamp(min=0)])
    chosen = sure.nonzero()[:, 0]
    chosen = chosen[scores[chosen].argsort(descending=True, stable=True)]
    if nms is not None and len(chosen):
        chosen = chosen[_survivors(found[chosen], found_labels[chosen], scores[chosen], nms)]
    if limit is not None:
        chosen = chosen[: max(limit - len(boxes), 0)]
    if not len(chosen):
        return boxes, labels
    return torch.cat([boxes, found[chosen].to(boxes)]), torch.cat([labels, found_labels[chosen].to(labels)])


def _survivors(boxes: Tensor, labels: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Which boxes, best first, no better one of their class overlaps by more than the threshold."""
    from limbeck.engine.mmcv_ops import install

    install()
    from mmcv.ops import nms_rotated

    flat = boxes[:, [0, 1, 3, 4, 6]].float()
    kept = nms_rotated(flat, scores.float(), threshold, labels)[1]
    return kept.sort().values


@METHODS.register_module()
class LabelKD(Method):
    """Joins the teacher's sure boxes to the ground truth before the student's targets are assigned; no loss of its own.

    The teacher sees the very cloud of the student, augmented alike. Other links and members see the ground truth
    alone. A cache keeps the boxes; in half precision places 40 m away are off by up to 16 mm.

    Taps: the teacher's boxes (B, P, 9) before suppression, 7 codes, score, label, with label −1 for padding. The
    student's tap is not read.

    Official thresholds: 0.6 of all classes, the default; 0.6, 0.5, 0.5 (vehicle, pedestrian, cyclist) of the coarser
    pillar students. `nms` is ours (ASSUMPTION), for anchor heads, whose boxes come by the dozen for every object.

    Args:
        threshold: θ of all classes, or of each; in [0, 1]. With 1 this is plain training.
        limit, nms: see `joined_boxes`.
        weight: 0 switches it off; other values are all the same.
        kwargs: see `Method`.
    Raises: ConfigError for options out of range.
    """

    alters_targets = True
    default_taps = (("decoded_boxes", "cls_logits"),)

    def __init__(
        self,
        *,
        threshold: float | Sequence[float] = 0.6,
        limit: int | None = 500,
        nms: float | None = None,
        weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight=weight, **kwargs)
        values = [threshold] if isinstance(threshold, (int, float)) else list(threshold)
        if not values or not all(0 <= value <= 1 for value in values) or (limit is not None and limit < 1):
            raise ConfigError(f"LabelKD needs thresholds in [0, 1] and limit >= 1 or None; got {threshold} and {limit}")
        if nms is not None and not 0 < nms < 1:
            raise ConfigError(f"LabelKD's nms is an overlap in (0, 1) or None; got {nms}")
        if self.scheduled:
            raise ConfigError("LabelKD has no loss for a schedule to scale; leave schedule out")
        self.thresholds, self.limit, self.nms = [float(value) for value in values], limit, nms

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        (shape,) = teacher_shapes
        if len(shape) != 3 or shape[2] != CODES + 2:
            raise ShapeMismatch(
                f"LabelKD: tap {self.taps[0][0]!r} gives {shape}, not boxes (B, P, 9); tap decoded_boxes"
            )

    def retarget(self, batch: LinkInputs) -> Targets3D:
        """Targets with joined boxes; the same boxes where the teacher is sure of none."""
        targets, thresholds = check_targets("LabelKD", batch.targets), self._class_thresholds()
        joined = [
            joined_boxes(
                boxes,
                labels,
                found[:, :CODES],
                found[:, CODES + 1].long(),
                found[:, CODES],
                thresholds=thresholds,
                limit=self.limit,
                nms=self.nms,
            )
            for boxes, labels, found in zip(targets.boxes, targets.labels, batch.teacher[0], strict=True)
        ]
        return replace(targets, boxes=[b for b, _ in joined], labels=[n for _, n in joined])

    def _class_thresholds(self) -> Tensor:
        classes = int(getattr(self.members[self.student], "num_classes", len(self.thresholds)))
        values = self.thresholds * classes if len(self.thresholds) == 1 else self.thresholds
        if len(values) != classes:
            raise ConfigError(f"LabelKD has {len(values)} thresholds for {classes} classes; give one, or one for each")
        return torch.tensor(values)

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        return {}
