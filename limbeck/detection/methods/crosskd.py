"""CrossKD: cross-head knowledge distillation for object detection (arXiv 2306.11369)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from limbeck.detection.methods._assignment import assign_anchors, centerness_total, check_targets
from limbeck.detection.methods._channel_statistics import aligned
from limbeck.detection.methods._dense_heads import (
    FORMS,
    HeadForm,
    Prediction,
    check_priors,
    dense_head,
    held_map,
    rectified,
    rest_of_head,
    rows,
)
from limbeck.detection.targets import DetectionTargets
from limbeck.engine.bridges import require_same_shape
from limbeck.engine.losses import check_maps
from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, UnknownName

HOLDS = ("post", "pre")
SIDES = 4
EPS = 1e-6  # of mmdetection's overlaps
BRIDGED = "1×1 convolutions take the student's held maps to the teacher's width; published pairs have one width."


def class_sum(cross: Tensor, teacher: Tensor, weights: Tensor | None = None, *, beta: float = 1.0) -> Tensor:
    """Σ u · BCE(σ(c), σ(t)) · |σ(c) − σ(t)|^β over anchors and classes: quality focal loss with the teacher as target.

    The gradient passes through both factors.

    Args:
        cross, teacher: logits c, t (N, K), same shape. The teacher's gradient is stopped.
        weights: u (N,); None is 1.
        beta: β ≥ 0.
    Returns: scalar ≥ 0, computed in float32; for β > 0 it is 0 where σ(c) = σ(t) alone.
    Raises: ShapeMismatch when the two differ.
    """
    require_same_shape(cross, teacher, "CrossKD's class term")
    with torch.autocast(cross.device.type, enabled=False):
        logits, target = cross.float(), teacher.detach().float().sigmoid()
        entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        loss = (entropy * (logits.sigmoid() - target).abs() ** beta).sum(1)
        return loss.sum() if weights is None else (weights.detach().float() * loss).sum()


def distribution_mean(cross: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """Σ r Σ_{4 sides} KL(p_T ‖ p_cross) / (4 Σ r): mean divergence of a side, a sum over its bins, weighted by r.

    Args:
        cross, teacher: logits of a box's sides (N, 4 · bins), side by side. The teacher's gradient is stopped.
        weights: r (N,), ≥ 0; all 0 gives 0. Gradient stopped.
    Returns: scalar ≥ 0, computed in float32.
    Raises: ShapeMismatch when the two differ.
    """
    require_same_shape(cross, teacher, "CrossKD's box term")
    with torch.autocast(cross.device.type, enabled=False):
        log_q, log_p = (x.float().reshape(len(x), SIDES, -1).log_softmax(2) for x in (cross, teacher.detach()))
        r = weights.detach().float()
        divergence = (log_p.exp() * (log_p - log_q)).sum((1, 2))
        return (r * divergence).sum() / (SIDES * r.sum()).clamp(min=torch.finfo(torch.float32).tiny)


def overlap_sum(cross: Tensor, teacher: Tensor, weights: Tensor, *, loss: str = "giou") -> Tensor:
    """Σ r · (1 − GIoU) of matching boxes, or, with 'iou', Σ r · (−log IoU), the IoU being at least 1e-6.

    Args:
        cross, teacher: boxes x1 y1 x2 y2 (N, 4), same shape. The teacher's gradient is stopped.
        weights: r (N,), ≥ 0. Gradient stopped.
        loss: 'giou' or 'iou'.
    Returns: scalar ≥ 0, computed in float32.
    Raises: ShapeMismatch when the two differ.
    """
    from mmdet.structures.bbox import bbox_overlaps

    require_same_shape(cross, teacher, "CrossKD's box term")
    boxes = cross.float(), teacher.detach().float()
    overlap = bbox_overlaps(*boxes, mode=loss, is_aligned=True, eps=EPS)
    each = 1 - overlap if loss == "giou" else -overlap.clamp(min=EPS).log()
    return (weights.detach().float() * each).sum()


@METHODS.register_module()
class CrossKD(Method):
    """The student's head features through the teacher's remaining head: taps the pyramid of both sides, every level.

    For classes and boxes apart, the map after convolution `index` of the student's head gets mean and deviation of the
    teacher's (`aligned`), a ReLU, and passes the teacher's following convolutions and output layer. This cross
    prediction imitates the teacher's own; the student's own sees labels alone. On all anchors, u being the student's
    label weights, r = σ(max_c t) · u, and P the number of positives of the student's assignment:

    - "class": class_factor · Σ u BCE(c, σ(t)) |σ(c) − σ(t)|^β / P, `class_sum`;
    - "box", GFL: box_factor · `distribution_mean`; RetinaNet, ATSS: box_factor · Σ r (1 − GIoU) / P of decoded boxes;
    - "centerness", ATSS alone: centerness_factor · Σ_{positives} BCE(cross, σ(teacher)) / P;
    - FCOS: no u, −log IoU, and the sum of the positives' centerness targets in place of P for both terms.

    Both heads are run here, the student's first `index` convolutions for a second time. The teacher's head is frozen.
    Nothing is learned, unless widths differ: then a 1×1 convolution without bias a branch, shared by the levels.

    Official: index 3 of 4, and 2 of 4 for FCOS; factors 1 and 4 (GFL), 1 and 1 (RetinaNet, ATSS), 0.4 and 0.75 (FCOS),
    from the first step to the last. CrossKD + PKD is a second link, PKD on all five levels.

    Args:
        index: the convolution after which the teacher takes over; 0 hands the pyramid over, without a ReLU. None is the
            last but one, of FCOS the middle one.
        class_factor, box_factor: ≥ 0; None takes the detector's. A term of factor 0 is left out.
        centerness_factor: ≥ 0.
        beta: β ≥ 0.
        hold: the map that is aligned: 'post', after the ReLU, as every published run has it (its code holds the map
            before an in-place ReLU, which overwrites it), or 'pre', as the text has it.
        weight: on all terms.
        kwargs: see `Method`.
    Raises: ConfigError, UnknownName for options out of range.
    """

    default_taps = tuple((f"neck[{level}]", f"neck[{level}]") for level in range(5))
    bridges: nn.ModuleList

    def __init__(
        self,
        *,
        index: int | None = None,
        class_factor: float | None = None,
        box_factor: float | None = None,
        centerness_factor: float = 1.0,
        beta: float = 1.0,
        hold: str = "post",
        weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight=weight, **kwargs)
        given = [f for f in (class_factor, box_factor) if f is not None]
        if not all(f >= 0 for f in (*given, centerness_factor, beta)) or (index is not None and index < 0):
            raise ConfigError(
                "CrossKD needs index, class_factor, box_factor, centerness_factor and beta >= 0; got "
                f"{index}, {class_factor}, {box_factor}, {centerness_factor} and {beta}"
            )
        if given == [0, 0]:
            raise ConfigError("CrossKD with class_factor=0 and box_factor=0 has no term left; set one of them above 0")
        if hold not in HOLDS:
            raise UnknownName("hold", hold, HOLDS, "of CrossKD")
        self.index, self.beta, self.hold = index, float(beta), hold
        self.class_factor, self.box_factor, self.centerness_factor = class_factor, box_factor, float(centerness_factor)

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        for t, s in zip(teacher_shapes, student_shapes, strict=True):
            check_maps("CrossKD", t, s)
        names = (self.teachers[0], self.student)
        teacher, student = (dense_head("CrossKD", name, self.members[name]) for name in names)
        self.form = _common_form(teacher, student)
        check_priors("CrossKD", teacher, student)
        levels = student.prior_generator.num_levels
        if len(self.taps) != levels:
            raise ConfigError(
                f"CrossKD: {len(self.taps)} levels are tapped and the student's head has {levels}; tap 'neck[0]' to "
                f"'neck[{levels - 1}]'"
            )
        stacked = teacher.stacked_convs
        if self.index is None:
            self.index = stacked // 2 if self.form.name == "FCOS" else max(stacked - 1, 0)
        self._check_heads(teacher, student, self.index)
        widths = [head.feat_channels if self.index else head.in_channels for head in (teacher, student)]
        same = widths[0] == widths[1]
        self.bridges = nn.ModuleList(
            nn.Identity() if same else nn.Conv2d(widths[1], widths[0], 1, bias=False) for _ in range(2)
        )
        if not same:
            self.assumption = BRIDGED  # type: ignore[misc]  # of this pair alone

    def _heads(self) -> tuple[Any, Any]:
        """The student's and the teacher's."""
        return self.members[self.student].bbox_head, self.members[self.teachers[0]].bbox_head

    def _check_heads(self, teacher: Any, student: Any, index: int) -> None:
        fewest = min(teacher.stacked_convs, student.stacked_convs)
        if index > fewest:
            raise ConfigError(
                f"CrossKD: index={index} is past the last of the heads' {teacher.stacked_convs} and "
                f"{student.stacked_convs} stacked convolutions; {fewest} or less would fit"
            )
        if any(p.requires_grad for p in teacher.parameters()):
            raise ConfigError(
                f"CrossKD sends gradients through the head of {self.teachers[0]!r}, which is trained; its teacher "
                "must be a frozen or an ema member"
            )
        front = (*student.cls_convs[:index], *student.reg_convs[:index])
        if any(isinstance(module, _BatchNorm) for conv in front for module in conv.modules()):
            raise ConfigError(
                "CrossKD runs the student's first head convolutions twice a step, which would move the statistics of "
                "their batch norm twice; give the head group norm or none"
            )

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        targets = check_targets("CrossKD", batch.targets)
        with torch.autocast(batch.student[0].device.type, enabled=False):
            pairs = [
                self.predictions(level, s.float(), t.detach().float())
                for level, (s, t) in enumerate(zip(batch.student, batch.teacher, strict=True))
            ]
            terms = (self._point_terms if self.form.name == "FCOS" else self._anchor_terms)(pairs, targets)
        factors = {
            "class": self.form.class_factor if self.class_factor is None else self.class_factor,
            "box": self.form.box_factor if self.box_factor is None else self.box_factor,
            "centerness": self.centerness_factor,
        }
        return {name: factors[name] * term for name, term in terms.items() if factors[name]}

    def predictions(self, level: int, student: Tensor, teacher: Tensor) -> tuple[Prediction, Prediction]:
        """The cross prediction and the teacher's own of one level, from both sides' maps (B, C, h, w) there."""
        index, activate = self.index or 0, self.hold == "post"
        mine, theirs = self._heads()
        with torch.no_grad():
            convs = (theirs.cls_convs, theirs.reg_convs)
            target = [held_map(c, teacher, index, activate=activate) for c in convs]
            own = rest_of_head(theirs, self.form, level, _rectified_pair(target, index), index)
        held = [held_map(c, student, index, activate=activate) for c in (mine.cls_convs, mine.reg_convs)]
        crossed = [aligned(bridge(s), t) for bridge, s, t in zip(self.bridges, held, target)]
        return rest_of_head(theirs, self.form, level, _rectified_pair(crossed, index), index), own

    def _anchor_terms(self, pairs: list[tuple[Prediction, Prediction]], targets: DetectionTargets) -> dict[str, Tensor]:
        """Terms of GFL, RetinaNet and ATSS, without their factors."""
        student, teacher = self._heads()
        given = assign_anchors(student, [_size(own) for _, own in pairs], targets)
        u = torch.cat([w.flatten() for w in given.weights])
        c, t = _both(pairs, "classes", teacher.cls_out_channels)
        r = u * t.amax(1).sigmoid()
        terms = {"class": class_sum(c, t, u, beta=self.beta) / given.positives}
        if self.form.box_loss == "distribution":
            terms["box"] = distribution_mean(*_both(pairs, "boxes", SIDES * (teacher.reg_max + 1)), r)
        else:
            images = len(targets)
            anchors = torch.cat([level.repeat(images, 1) for level in given.anchors])
            cross, own = (teacher.bbox_coder.decode(anchors, deltas) for deltas in _both(pairs, "boxes", SIDES))
            terms["box"] = overlap_sum(cross, own, r, loss="giou") / given.positives
        if self.form.centerness is not None:
            labels = torch.cat([level.flatten() for level in given.labels])
            positive = (labels >= 0) & (labels < student.num_classes)
            found, wanted = (x[positive] for x in _both(pairs, "centerness", 1))
            entropy = F.binary_cross_entropy_with_logits(found, wanted.sigmoid(), reduction="sum")
            terms["centerness"] = entropy / given.positives
        return terms

    def _point_terms(self, pairs: list[tuple[Prediction, Prediction]], targets: DetectionTargets) -> dict[str, Tensor]:
        """Terms of FCOS, without their factors."""
        student, _ = self._heads()
        divisor = centerness_total(student, [_size(own) for _, own in pairs], targets)
        c, t = _both(pairs, "classes", student.cls_out_channels)
        # Overlaps of boxes around one point do not depend on where it lies.
        signs = t.new_tensor([-1.0, -1.0, 1.0, 1.0])
        cross, own = (signs * distances for distances in _both(pairs, "boxes", SIDES))
        overlap = overlap_sum(cross, own, t.amax(1).sigmoid(), loss="iou")
        return {"class": class_sum(c, t, beta=self.beta) / divisor, "box": overlap / divisor}


def _common_form(teacher: Any, student: Any) -> HeadForm:
    forms = [FORMS.get(type(head).__name__) for head in (teacher, student)]
    if forms[0] is None or forms[0] is not forms[1]:
        raise ConfigError(
            f"CrossKD: a {type(teacher).__name__} as teacher and a {type(student).__name__} as student do not fit; two "
            f"heads of one kind of {', '.join(sorted(FORMS))} would"
        )
    return forms[0]


def _rectified_pair(maps: list[Tensor], index: int) -> tuple[Tensor, Tensor]:
    return rectified(maps[0], index), rectified(maps[1], index)


def _both(pairs: list[tuple[Prediction, Prediction]], name: str, width: int) -> tuple[Tensor, Tensor]:
    """A part of the cross predictions and of the teacher's, all levels, (N, width) each."""
    cross, own = ([rows(getattr(pair[side], name), width) for pair in pairs] for side in (0, 1))
    return torch.cat(cross), torch.cat(own)


def _size(prediction: Prediction) -> tuple[int, int]:
    return prediction.classes.shape[2], prediction.classes.shape[3]
