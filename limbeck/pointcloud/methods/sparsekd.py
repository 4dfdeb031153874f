"""SparseKD: logits of 3D detectors at pivotal positions (arXiv 2205.15156), for anchor and for centre heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from limbeck.engine.bridges import mismatch
from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName
from limbeck.pointcloud.methods._anchor_head import anchor_head, anchor_rows, positive_anchors
from limbeck.pointcloud.methods._bev import cells_in_boxes
from limbeck.pointcloud.methods._centre_head import CODES, centre_head, centre_targets
from limbeck.pointcloud.methods._pivotal import (
    CLAMP,
    box_loss,
    centre_loss,
    direction_loss,
    position_weights,
    probabilities,
    score_loss,
)
from limbeck.pointcloud.targets import Targets3D, check_targets

ANCHOR_MODES = ("boxes", "positives", "confidence", "rank", "all")
CENTRE_MODES = ("gaussian", "confidence", "rank")
ANCHOR_TAPS = tuple((f"bbox_head.{name}", f"bbox_head.{name}") for name in ("conv_cls", "conv_reg", "conv_dir_cls"))
CENTRE_HEAD = "pts_bbox_head.task_heads.0"
CODE_WIDTH = 7
OURS = "Factors and positions of anchor heads are ours: the official code has no recipe for them."


class _Pivotal(Method):
    """What both have: which positions count, and terms that are 0 for a batch without objects."""

    modes: Sequence[str] = ()

    def __init__(self, *, mode: str, threshold: float, top: int, soft: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if mode not in self.modes:
            raise UnknownName("mode", mode, self.modes, f"of {type(self).__name__}")
        if not 0 <= threshold < 1 or top < 1:
            raise ConfigError(
                f"{type(self).__name__} needs threshold in [0, 1) and top >= 1; got {threshold} and {top}"
            )
        self.mode, self.soft = mode, soft
        self.threshold = float(threshold) if mode == "confidence" else 0.0
        self.top = top if mode == "rank" else None
        self.declared_zero = self.may_be_zero
        self.factors: dict[str, float] = {}

    def _check_factors(self) -> None:
        if not all(f >= 0 for f in self.factors.values()) or not any(self.factors.values()):
            said = ", ".join(f"{name}={value}" for name, value in self.factors.items())
            raise ConfigError(f"{type(self).__name__} needs factors >= 0, one of them > 0; got {said}")

    def _weights(self, logits: Tensor, mask: Tensor | None, clamp: float = 0.0) -> Tensor:
        scores = probabilities(logits, clamp)
        return position_weights(scores, mask=mask, threshold=self.threshold, top=self.top, soft=self.soft)

    def _terms(self, found: Mapping[str, Tensor], targets: Targets3D) -> dict[str, Tensor]:
        """The terms by their factors. Clouds without objects have nothing to teach, which the first step may see."""
        self.may_be_zero = self.declared_zero or not any(len(boxes) for boxes in targets.boxes)
        return {name: self.factors[name] * value for name, value in found.items()}


@METHODS.register_module()
class SparseKD(_Pivotal):
    """Class scores and boxes of an anchor head, of one grid on both sides; taps its outputs.

    - "scores": scores · Σ w (σ_S − σ_T)² / Σ w over the cells, `score_loss`, w as `mode` says;
    - "box": box · 1 / B Σ_b 1 / P_b Σ_{positives} smooth-L1 of the codes, the yaw by its sine, `box_loss`;
    - "direction": direction · 1 / B Σ_b 1 / P_b Σ_{positives} KL of the direction logits; ours, off by default.

    Positives are those of the student's own assignment, P_b their number in a cloud, at least 1. With scores=0 this is
    box distillation alone. The paper's models have centre heads, `CentreSparseKD`; the official code has these terms
    for anchor heads without a recipe, so that factors, the cells in boxes and the teacher's score are ours
    (ASSUMPTION), and so is one choice of positions where the code multiplies any.

    Args:
        scores, box, direction: factors ≥ 0; a term of factor 0 is left out.
        mode: cells that count: 'boxes', in a ground-truth box seen from above; 'positives', with a positive anchor;
            'confidence', where the teacher's largest score is above `threshold`; 'rank', the `top` of a cloud with the
            largest scores; 'all'.
        threshold, top: see `mode` (ASSUMPTION).
        soft: weight a cell by the teacher's largest score.
        own_cell: see `cells_in_boxes` (ASSUMPTION).
        taps: of class logits, box codes and, with `direction`, direction logits.
        weight: on all terms.
        kwargs: see `Method`.
    Raises: ConfigError, UnknownName for options out of range.
    """

    modes = ANCHOR_MODES
    default_taps = ANCHOR_TAPS[:2]
    assumption = OURS

    def __init__(
        self,
        *,
        scores: float = 15.0,
        box: float = 0.2,
        direction: float = 0.0,
        mode: str = "boxes",
        threshold: float = 0.3,
        top: int = 500,
        soft: bool = True,
        own_cell: bool = True,
        taps: Sequence[Sequence[str]] | None = None,
        weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        if taps is None:
            taps = ANCHOR_TAPS[: 3 if direction else 2]
        super().__init__(mode=mode, threshold=threshold, top=top, soft=soft, taps=taps, weight=weight, **kwargs)
        self.factors = {"scores": float(scores), "box": float(box), "direction": float(direction)}
        self._check_factors()
        self.own_cell = own_cell
        if len(self.taps) != (3 if direction else 2):
            raise ConfigError(
                "SparseKD has one pair of taps for class logits, one for box codes and, with direction > 0, one for "
                f"direction logits; got {self.taps}"
            )

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        heads = [anchor_head("SparseKD", name, self.members[name]) for name in (self.teachers[0], self.student)]
        for teacher, student in zip(teacher_shapes, student_shapes, strict=True):
            if teacher != student or len(teacher) != 4:
                raise mismatch("SparseKD", teacher, student)
        anchors = heads[1].num_anchors
        widths = [shape[1] for shape in student_shapes]
        wanted = [anchors * heads[1].num_classes, anchors * CODE_WIDTH, anchors * 2][: len(widths)]
        if widths != wanted:
            raise ShapeMismatch(
                f"SparseKD: taps of {widths} channels are not class logits, box codes (and direction logits), which "
                f"have {wanted}; tap {', '.join(repr(t) for t, _ in ANCHOR_TAPS[: len(widths)])}"
            )

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        targets = check_targets("SparseKD", batch.targets)
        student, teacher = batch.student, batch.teacher
        size = (student[0].shape[2], student[0].shape[3])
        head: Any = self.members[self.student].bbox_head
        found: dict[str, Tensor] = {}
        positive = torch.zeros(len(student[0]), 0, dtype=torch.bool)  # read by those that need it alone
        if self.mode == "positives" or self.factors["box"] or self.factors["direction"]:
            positive = positive_anchors(head, size, targets)
        if self.factors["scores"]:
            found["scores"] = score_loss(student[0], teacher[0], self._cells(teacher[0], targets, positive))
        share = positive / (positive.sum(1, keepdim=True).clamp(min=1) * len(positive))
        for index, name, loss, width in ((1, "box", box_loss, CODE_WIDTH), (2, "direction", direction_loss, 2)):
            if self.factors[name]:
                mine, theirs = (anchor_rows(side[index], width)[positive] for side in (student, teacher))
                found[name] = loss(mine, theirs, share[positive])
        return self._terms(found, targets)

    def _cells(self, logits: Tensor, targets: Targets3D, positive: Tensor) -> Tensor:
        """w (B, H, W)."""
        batch, _, *size = logits.shape
        mask = None
        if self.mode == "boxes":
            where = (size[0], size[1])
            mask = cells_in_boxes(targets.boxes, where, targets.point_cloud_range, own_cell=self.own_cell)
        elif self.mode == "positives":
            mask = positive.view(batch, *size, -1).any(3)
        return self._weights(logits.detach(), mask)


@METHODS.register_module()
class CentreSparseKD(_Pivotal):
    """Heat maps and regressions of a centre head, as the paper has it; the mean over the head's tasks.

    - "heatmap": heatmap · Σ w (p_S − p_T)² / Σ w, `score_loss`, p kept within [1e-4, 1 − 1e-4]. The student's p is
      resized to the teacher's map where sizes differ;
    - "box": box · L1 of the 8 codes at the cells of objects, `centre_loss`; needs equal maps.

    w is the teacher's largest score of a cell (`soft`) times, by mode: 'gaussian', the largest value of the
    ground-truth heat map, as released; 'confidence', 1 above `threshold`; 'rank', 1 at the `top` cells of a cloud and
    task. Heat maps and cells are those of the teacher's own head, which needs its training config.

    Official factors (heatmap, box), from the first step to the last: CP-Voxel-S 10, 0.2 (the default); -XS, -XXS 15,
    0.2; CP-Pillar students of coarser grids 7, 0. The official teacher runs in training mode; ours does not.

    Args:
        heatmap, box: factors ≥ 0; a term of factor 0 is left out.
        mode, threshold, top: see above; values of the latter two are ours (ASSUMPTION).
        soft: weight a cell by the teacher's largest score.
        taps: for each task the pair of 'pts_bbox_head.task_heads.T.heatmap' and, unless box=0, those of 'reg',
            'height', 'dim' and 'rot' after it.
        weight: on both terms.
        kwargs: see `Method`.
    Raises: ConfigError, UnknownName for options out of range.
    """

    modes = CENTRE_MODES
    default_taps = tuple((f"{CENTRE_HEAD}.{name}", f"{CENTRE_HEAD}.{name}") for name in ("heatmap", *CODES))

    def __init__(
        self,
        *,
        heatmap: float = 10.0,
        box: float = 0.2,
        mode: str = "gaussian",
        threshold: float = 0.3,
        top: int = 500,
        soft: bool = True,
        taps: Sequence[Sequence[str]] | None = None,
        weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        step = 1 + len(CODES) * bool(box)
        if taps is None:
            taps = self.default_taps[:step]
        super().__init__(mode=mode, threshold=threshold, top=top, soft=soft, taps=taps, weight=weight, **kwargs)
        self.factors = {"heatmap": float(heatmap), "box": float(box)}
        self._check_factors()
        self.step = step
        if len(self.taps) % step:
            raise ConfigError(
                f"CentreSparseKD has {step} pairs of taps for each task ({', '.join(('heatmap', *CODES)[:step])}); "
                f"got {len(self.taps)}"
            )

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        head = centre_head("CentreSparseKD", self.teachers[0], self.members[self.teachers[0]])
        tasks = len(self.taps) // self.step
        if tasks != len(head.task_heads):
            raise ConfigError(
                f"CentreSparseKD taps {tasks} tasks and the teacher's head has {len(head.task_heads)}; tap them all"
            )
        for index, (teacher, student) in enumerate(zip(teacher_shapes, student_shapes, strict=True)):
            if len(teacher) != 4 or len(student) != 4 or teacher[:2] != student[:2]:
                raise mismatch("CentreSparseKD", teacher, student)
            if teacher[2:] != student[2:] and self.factors["box"]:
                raise ShapeMismatch(
                    f"CentreSparseKD: taps {self.taps[index]} have maps of {teacher[2:]} and {student[2:]} cells, "
                    "between which boxes cannot be compared; set box=0"
                )

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        targets = check_targets("CentreSparseKD", batch.targets)
        head = centre_head("CentreSparseKD", self.teachers[0], self.members[self.teachers[0]])
        found: dict[str, list[Tensor]] = {name: [] for name, factor in self.factors.items() if factor}
        for task, given in enumerate(centre_targets(head, targets)):
            start = task * self.step
            student, teacher = (side[start : start + self.step] for side in (batch.student, batch.teacher))
            if given.heatmap.shape[2:] != teacher[0].shape[2:]:
                raise ShapeMismatch(
                    f"CentreSparseKD: the teacher's heat map {tuple(teacher[0].shape)} and its targets "
                    f"{tuple(given.heatmap.shape)} differ; set grid_size and out_size_factor of its training config"
                )
            if "heatmap" in found:
                mask = given.heatmap.amax(1) if self.mode == "gaussian" else None
                weights = self._weights(teacher[0].detach(), mask, CLAMP)
                found["heatmap"].append(score_loss(student[0], teacher[0], weights, clamp=CLAMP))
            if "box" in found:
                mine, theirs = (torch.cat([x.float() for x in side[1:]], dim=1) for side in (student, teacher))
                found["box"].append(centre_loss(mine, theirs, given.cells, given.valid))
        return self._terms({name: torch.stack(values).mean() for name, values in found.items()}, targets)
