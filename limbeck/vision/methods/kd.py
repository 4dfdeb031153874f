"""KD: distilling the knowledge in a neural network (arXiv 1503.02531)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.engine.losses import IGNORE, RESIZED, check_logits, check_temperature, fit_labels, fit_logits
from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError
from limbeck.vision.methods._standardise import standardise as standardised


def kd_loss(student: Tensor, teacher: Tensor, *, temperature: float = 4.0, labels: Tensor | None = None) -> Tensor:
    """Divergence of the student's softened class distribution from the teacher's.

    L = T² · mean KL(σ(z_T / T) ‖ σ(z_S / T)): summed over classes, averaged over the B samples or, of dense logits, the
    B · H · W pixels. T² keeps the gradient, (T / B)(σ(z_S / T) − σ(z_T / T)), from vanishing as T grows.

    Args:
        student, teacher: logits (B, C), or (B, C, H, W) with the student's resized to the teacher's, `fit_logits`. The
            teacher's gradient is stopped.
        temperature: T, softens both distributions; > 0.
        labels: label maps (B, H', W') of dense logits, brought to their size by nearest: leaves the pixels of label 255
            out of the mean. None takes all pixels.
    Returns: scalar ≥ 0, computed in float32; 0, with a graph, where every pixel is left out.
    Raises: ShapeMismatch when logits or labels do not fit.

    >>> loss = kd_loss(torch.tensor([[0.0, 4.0]]), torch.tensor([[4.0, 0.0]]), temperature=4.0)
    >>> round(loss.item(), 3)
    7.394
    """
    check_logits("KD", tuple(teacher.shape), tuple(student.shape), axes=(2, 4))
    log_q = F.log_softmax(fit_logits(student, teacher).float() / temperature, dim=1)
    log_p = F.log_softmax(teacher.detach().float() / temperature, dim=1)
    if labels is None:
        pixels = math.prod(teacher.shape[2:])  # 1 of (B, C)
        return temperature**2 / pixels * F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    valid = fit_labels("KD", labels, tuple(teacher.shape)) != IGNORE
    divergence = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(1)
    return temperature**2 * divergence.masked_fill(~valid, 0.0).sum() / valid.sum().clamp(min=1)


def logit_pairs(batch: LinkInputs, *, standardise: bool = False) -> list[tuple[Tensor, Tensor]]:
    """(student logits, teacher logits) of every pair of taps, of one size; both standardised where asked."""
    pairs = [(fit_logits(s, t), t) for s, t in zip(batch.student, batch.teacher, strict=True)]
    return [(standardised(s), standardised(t)) if standardise else (s, t) for s, t in pairs]


@METHODS.register_module()
class KD(Method):
    """Soft targets: taps the logits of both sides, (B, C) or (B, C, H, W) with the same C. No modules, no warm-up.

    The official CIFAR-100 objective is 0.1 · CE + 0.9 · L at T = 4. The 0.9 is this link's `weight`; the 0.1 on cross
    entropy is the config's `task_weight=0.1`, which no link can set. ImageNet (DKD's code base): T = 1, 0.5 / 0.5.
    With logit standardisation (arXiv 2403.01427): 0.1 · CE + 9 · L at T = 2 on both, so `weight=9.0`.

    Dense logits (segmentation, before up-sampling) are distilled pixel by pixel. CIRKD's code base (arXiv 2204.06986)
    has T = 1 and weight 1 beside the task loss and takes ignored pixels too; the student's logits are resized where
    sizes differ.

    Args:
        temperature: T > 0.
        standardise: bring the logits of each sample or pixel, of both sides, to mean 0 and deviation 1 first.
        mask_ignore: leave the pixels out whose label is 255 (ours; for dense logits alone).
        weight: factor on the term "kl".
        kwargs: see `Method`.
    Raises: ConfigError for a temperature that is not positive.
    """

    default_taps = (("logits", "logits"),)

    def __init__(
        self,
        *,
        temperature: float = 4.0,
        standardise: bool = False,
        mask_ignore: bool = False,
        weight: float = 0.9,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight=weight, **kwargs)
        self.temperature = check_temperature("KD", temperature)
        self.standardise, self.mask_ignore = standardise, mask_ignore

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        for teacher, student in zip(teacher_shapes, student_shapes, strict=True):
            check_logits("KD", teacher, student, axes=(2, 4))
            if teacher[2:] != student[2:]:
                self.assumption = RESIZED  # type: ignore[misc]  # of this pair alone
            if self.mask_ignore and len(teacher) == 2:
                raise ConfigError(
                    f"KD: logits {teacher} have no pixels for mask_ignore=True to leave out; tap dense logits "
                    "(B, C, H, W), or drop mask_ignore"
                )

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        labels = batch.targets if self.mask_ignore else None
        pairs = logit_pairs(batch, standardise=self.standardise)
        losses = [kd_loss(s, t, temperature=self.temperature, labels=labels) for s, t in pairs]
        return {"kl": torch.stack(losses).sum()}
