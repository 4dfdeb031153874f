"""MasKD: masked distillation with receptive tokens (arXiv 2205.14589)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.detection.methods._receptive_tokens import (
    ReceptiveTokens,
    learn_tokens,
    masked_features,
    read_tokens,
    token_batches,
    token_dice,
)
from limbeck.detection.methods._teacher_stage import learn_on_teacher, map_batches, task_loss
from limbeck.engine.bridges import mismatch, require_same_shape
from limbeck.engine.losses import check_logits, fit_logits
from limbeck.engine.method import LinkInputs, Method, Shapes, TrainingSet
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName

FORMS = ("segmentation", "detection")
EPS = 1e-5  # of the official segmentation code; detection's has none


def maskd_loss(
    student: Tensor, teacher: Tensor, masks: Tensor, *, weights: Tensor | None = None, eps: float = 0.0
) -> Tensor:
    """Squared error of one level inside each mask, by the mask's area.

    L = mean_B Σ_m w_m · mean_C [ Σ_HW M_m² (S − T)² / (Σ_HW M_m + eps) ], w_m = 1 / M without weights.

    The square of M is the official code's: it masks both maps before their difference is squared. Masks of ½ everywhere
    give half the mean squared error.

    Args:
        student, teacher: S, T (B, C, H, W), same shape. The teacher's gradient is stopped.
        masks: M (B, M, H, W) in (0, 1). Gradient stopped.
        weights: w (B, M), each row adding up to 1. Gradient stopped.
    Returns: scalar ≥ 0, computed in float32.
    Raises: ShapeMismatch when the maps differ, or masks or weights do not belong to them.

    >>> masks = torch.full((2, 6, 4, 4), 0.5)
    >>> maskd_loss(torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), masks).item()
    0.5
    """
    require_same_shape(student, teacher, "MasKD")
    batch, size = len(student), student.shape[2:]
    if student.dim() != 4 or masks.dim() != 4 or len(masks) != batch or masks.shape[2:] != size:
        raise ShapeMismatch(
            f"MasKD: maps {tuple(student.shape)} and masks {tuple(masks.shape)} do not fit; "
            "(B, C, H, W) and (B, M, H, W) would"
        )
    if weights is not None and weights.shape != masks.shape[:2]:
        raise ShapeMismatch(
            f"MasKD: weights {tuple(weights.shape)} and masks {tuple(masks.shape)} do not fit; (B, M) would"
        )
    with torch.autocast(student.device.type, enabled=False):
        error = (student.float() - teacher.detach().float()).square().flatten(2)
        masks = masks.detach().float().flatten(2)
        # At the least the smallest normal number: an area of 0 has no error in it either.
        area = (masks.sum(2) + eps).clamp(min=torch.finfo(torch.float32).tiny)
        inside = torch.einsum("bmp,bcp->bmc", masks.square(), error).mean(2) / area
    if weights is None:
        return inside.mean()
    return (weights.detach().float() * inside).sum(1).mean()


def regression_loss(student: Tensor, teacher: Tensor, *, beta: float = 0.0) -> Tensor:
    """Smooth L1 between the raw outputs of two regression heads, mean over all of them; plain L1 at β = 0.

    Args:
        student, teacher: of one shape. The teacher's gradient is stopped.
    Returns: scalar ≥ 0, computed in float32.
    Raises: ShapeMismatch when the two differ.
    """
    require_same_shape(student, teacher, "MasKD's regression term")
    return F.smooth_l1_loss(student.float(), teacher.detach().float(), beta=beta)


@METHODS.register_module()
class MasKD(Method):
    """Masks by learned tokens: taps logits (segmentation) or FPN levels (detection), and compares inside each mask.

    `form='segmentation'`: taps logits (B, K, h, w), the main head's first, then auxiliary heads'. Before the first step
    `masks` tokens are learned on the teacher's logits of the training split (`stage1_loss`; 2,000 iterations of batch
    16 are detection's numbers, momentum 0.9 and no weight decay are ours). Then, frozen, L = ½ · `maskd_loss` with
    ε = 1e-5, auxiliary heads by `aux_weight`, without bridge; the student's logits are resized to the teacher's size.

    `form='detection'`: taps maps of one size a level, `neck[0]` … `neck[4]`. L is the sum over levels of `maskd_loss`
    of a 1×1 convolution φ of the student, present at equal widths too and trained with it. From `customise_after` on,
    M = M(T) ⊙ M(φ(S)). Before the first step a level's tokens, and the branch that weighs their masks, are learned on
    the training split by the loss of the teacher's heads on Σ_m w_m M_m ⊙ T plus the Dice of every level
    (`learn_on_teacher`); it needs the maps of every level that the heads read. The last taps may be raw regression
    outputs; report that as "MasKD", and "MasKD (feature only)" apart. Official weights, then `customise_after` of 24
    epochs of COCO at batch 16, and the regression factors:

    - RetinaNet R101 → R50: 7, 0.04, L1 with 1 a level; X101 → R50: 7, 0.048, smooth L1 (β = 1) with 1 a level.
    - Faster R-CNN: 1, 0.042 (0.028 from Cascade Mask R-CNN), smooth L1 on the student's RoIs with 1.
    - FCOS: 10, 0.028, none.
    - RepPoints: 10, 0.028, smooth L1 (β = 0.11), 0.2 on the refined points and 0.1 on the initial ones.

    Tokens and the branch that weighs masks never learn in a run. `receptive.state_dict()` is what a file holds; a
    resumed run takes the saved ones.

    Args:
        form: 'segmentation' or 'detection'.
        tokens: safetensors file of tokens learned beforehand; see `read_tokens`. Its M counts.
        masks: M ≥ 2 of the tokens that are learned here; None is 8 in segmentation and 6 in detection.
        prob: weigh masks by a branch, else alike; None takes True in detection.
        customise_after: share of the run after which masks are customised; None is never.
        aux_weight: factor on auxiliary heads, in both stages.
        regression: factors on the last pairs of taps, which are raw regression outputs.
        regression_beta: β ≥ 0 of their smooth L1; 0 is L1.
        stage1_iterations, stage1_batch_size, stage1_lr: of stage 1; None for the rate is 0.1 in segmentation (SGD) and
            0.01 in detection (Adam).
        max_megabytes: keep the teacher's logits in memory for stage 1 up to this size, else run the teacher again.
        weight: factor on the terms "mask" and "regression"; divide `regression` by it to keep those factors.
        kwargs: see `Method`.
    Raises: ConfigError, UnknownName for options out of range; CorruptFile for a file without fitting tokens.
    """

    default_taps = (("logits", "logits"),)
    wants_data = True
    assumption = (
        "Stage 1 of segmentation takes detection's 2,000 iterations of batch 16, momentum 0.9, no weight decay, "
        "and the overlap of the main logits' masks alone."
    )
    receptive: nn.ModuleList
    bridges: nn.ModuleList

    def __init__(
        self,
        *,
        form: str = "segmentation",
        tokens: str | None = None,
        masks: int | None = None,
        prob: bool | None = None,
        customise_after: float | None = None,
        aux_weight: float = 0.4,
        regression: Sequence[float] = (),
        regression_beta: float = 0.0,
        stage1_iterations: int = 2000,
        stage1_batch_size: int = 16,
        stage1_lr: float | None = None,
        max_megabytes: float = 1000.0,
        weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight=weight, **kwargs)
        if form not in FORMS:
            raise UnknownName("form", form, FORMS, "of MasKD")
        self.dense = form == "segmentation"
        self.tokens, self.prob = tokens, not self.dense if prob is None else prob
        self.masks, rate = (8, 0.1) if self.dense else (6, 0.01)
        self.masks = self.masks if masks is None else masks
        self.customise_after, self.aux_weight = customise_after, float(aux_weight)
        self.regression, self.regression_beta = [float(w) for w in regression], float(regression_beta)
        self.stage1_iterations, self.stage1_batch_size = stage1_iterations, stage1_batch_size
        self.stage1_lr, self.max_megabytes = float(rate if stage1_lr is None else stage1_lr), float(max_megabytes)
        self._check_options()
        self.levels = len(self.taps) - len(self.regression)
        self.wants_data = tokens is None  # type: ignore[misc]  # else the split is not read
        self.ready = False

    def _check_options(self) -> None:
        if self.dense and (self.prob or self.regression):
            raise ConfigError("MasKD in segmentation has neither prob nor regression; set form='detection' for them")
        if len(self.regression) >= len(self.taps):
            raise ConfigError(
                f"MasKD: {len(self.taps)} pairs of taps leave no map beside {len(self.regression)} regression outputs; "
                "name the maps first, then one pair for each factor in regression"
            )
        after = self.customise_after
        if self.masks < 2 or (after is not None and not 0 <= after <= 1) or not self.regression_beta >= 0:
            raise ConfigError(
                "MasKD needs masks >= 2, customise_after in [0, 1] and regression_beta >= 0; "
                f"got {self.masks}, {after} and {self.regression_beta}"
            )
        if self.stage1_iterations < 1 or self.stage1_batch_size < 1 or not self.stage1_lr > 0:
            raise ConfigError(
                "MasKD needs stage1_iterations >= 1, stage1_batch_size >= 1 and stage1_lr > 0; "
                f"got {self.stage1_iterations}, {self.stage1_batch_size} and {self.stage1_lr}"
            )

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        pairs = list(zip(teacher_shapes, student_shapes, strict=True))
        maps, outputs = pairs[: self.levels], pairs[self.levels :]
        for teacher, student in maps:
            if self.dense:  # sizes may differ
                check_logits("MasKD", teacher, student, axes=(4,))
            elif len(teacher) != 4 or len(student) != 4 or (teacher[0], teacher[2:]) != (student[0], student[2:]):
                raise mismatch("MasKD compares maps of one size", teacher, student)
        for teacher, student in outputs:
            if teacher != student:
                raise mismatch("MasKD's regression term", teacher, student)
        widths = [teacher[1] for teacher, _ in maps]
        if self.dense and len(set(widths)) > 1:
            raise ShapeMismatch(
                f"MasKD: heads of {widths} classes cannot share tokens; tap heads of one number of classes"
            )
        widths = widths[:1] if self.dense else widths  # main and auxiliary heads share theirs
        if self.tokens is None:
            self.receptive = nn.ModuleList(ReceptiveTokens(width, self.masks, prob=self.prob) for width in widths)
        else:
            self.receptive, self.ready = read_tokens(self.tokens, widths, prob=self.prob), True
        convs = [] if self.dense else [nn.Conv2d(student[1], teacher[1], 1) for teacher, student in maps]
        self.bridges = nn.ModuleList(convs)

    def prepare(self, data: TrainingSet) -> None:
        if self.dense:
            self._learn_dense(data)
        else:
            self._learn_levels(data)
        self.ready = True

    def _learn_dense(self, data: TrainingSet) -> None:
        level = cast(ReceptiveTokens, self.receptive[0])
        size, limit = self.stage1_batch_size, self.max_megabytes
        batches = token_batches(data.teacher_taps, data.classes, size=size, max_megabytes=limit)
        iterations, lr = self.stage1_iterations, self.stage1_lr
        level.tokens, _ = learn_tokens(level.tokens, batches, iterations=iterations, lr=lr, aux_weight=self.aux_weight)

    def _learn_levels(self, data: TrainingSet) -> None:
        levels = [cast(ReceptiveTokens, level) for level in self.receptive]
        teacher = self.members[self.teachers[0]]

        def loss(maps: list[Tensor], targets: Any) -> Tensor:
            masks = [level.masks(t) for level, t in zip(levels, maps)]
            seen = [masked_features(t, m, level.weights(t)) for level, t, m in zip(levels, maps, masks)]
            return task_loss(teacher, seen, targets) + torch.stack([token_dice(m) for m in masks]).sum()

        def read() -> Iterator[tuple[list[Tensor], Any, Tensor]]:
            for maps, targets, ids in data.teacher_taps():
                yield maps[: self.levels], targets, ids

        batches = map_batches(read, size=self.stage1_batch_size, max_megabytes=self.max_megabytes)
        learned = [x for level in levels for x in (level.tokens, *level.parameters())]
        learn_on_teacher(learned, loss, batches, iterations=self.stage1_iterations, lr=self.stage1_lr)

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        if not self.ready:
            raise ConfigError(
                "MasKD has no learned tokens yet; call prepare(data) with the training split before a step, or name "
                "tokens='….safetensors'"
            )
        pairs = list(zip(batch.student, batch.teacher, strict=True))
        custom = self.customise_after is not None and batch.progress >= self.customise_after
        losses = [self._level(i, s, t, custom=custom) for i, (s, t) in enumerate(pairs[: self.levels])]
        terms = {"mask": torch.stack(losses).sum()}
        if self.regression:
            found = [regression_loss(s, t, beta=self.regression_beta) for s, t in pairs[self.levels :]]
            terms["regression"] = torch.stack([w * x for w, x in zip(self.regression, found)]).sum()
        return terms

    def _level(self, index: int, student: Tensor, teacher: Tensor, *, custom: bool) -> Tensor:
        level = cast(ReceptiveTokens, self.receptive[0 if self.dense else index])
        with torch.autocast(student.device.type, enabled=False):
            student, teacher = student.float(), teacher.detach().float()
            student = fit_logits(student, teacher) if self.dense else self.bridges[index](student)
            masks = level.masks(teacher)
            if custom:
                masks = masks * level.masks(student.detach())
            if not self.dense:
                return maskd_loss(student, teacher, masks, weights=level.weights(teacher))
        factor = 0.5 if index == 0 else 0.5 * self.aux_weight
        return factor * maskd_loss(student, teacher, masks, eps=EPS)
