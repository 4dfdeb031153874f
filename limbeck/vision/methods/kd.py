"""KD: distilling the knowledge in a neural network (arXiv 1503.02531)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.vision.methods._standardise import standardise as standardised


def kd_loss(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Divergence of the student's softened class distribution from the teacher's.

    L = T² · mean_B KL(σ(z_T / T) ‖ σ(z_S / T)): summed over classes, averaged over samples. T² keeps the gradient,
    (T / B)(σ(z_S / T) − σ(z_T / T)), from vanishing as T grows.

    Args:
        student, teacher: logits (B, C), same shape. The teacher's gradient is stopped.
        temperature: T, softens both distributions; > 0.
    Returns: scalar ≥ 0, computed in float32.
    Raises: ShapeMismatch when the two are not (B, C) of one shape.

    >>> loss = kd_loss(torch.tensor([[0.0, 4.0]]), torch.tensor([[4.0, 0.0]]), temperature=4.0)
    >>> round(loss.item(), 3)
    7.394
    """
    check_logits("KD", tuple(teacher.shape), tuple(student.shape))
    log_q = F.log_softmax(student.float() / temperature, dim=1)
    log_p = F.log_softmax(teacher.detach().float() / temperature, dim=1)
    return temperature**2 * F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")


def check_logits(what: str, teacher: tuple[int, ...], student: tuple[int, ...], *, axes: Sequence[int] = (2,)) -> None:
    """Check that two logit shapes are equal, of two classes or more, and of an allowed number of axes.

    Args:
        what: the method, for the error.
        axes: 2 for (B, C), 4 for (B, C, H, W).
    Raises: ShapeMismatch, with both shapes and what would fit.
    """
    forms = " or ".join({2: "(B, C)", 4: "(B, C, H, W)"}[n] for n in axes)
    if len(teacher) not in axes or len(student) not in axes or len(teacher) != len(student):
        hint = f"tap logits {forms} on both sides"
    elif teacher[0] != student[0]:
        hint = "both sides must see the same batch"
    elif teacher[1] != student[1]:
        hint = f"a student head of {teacher[1]} classes, as the teacher's, would fit"
    elif teacher != student:
        hint = f"student logits of the teacher's {teacher[2]}×{teacher[3]} would fit"
    elif teacher[1] < 2:
        hint = (
            "one class has probability 1 whatever its logit, so that there is nothing to learn: two or more would fit"
        )
    else:
        return
    raise ShapeMismatch(f"{what}: teacher logits {teacher} and student logits {student} do not fit; {hint}")


def check_labels(what: str, labels: Tensor, *, batch: int, classes: int) -> None:
    """Check that labels are (batch,) integers in 0 … classes − 1.

    Raises: ShapeMismatch, with the first label that is out of range.
    """
    if tuple(labels.shape) != (batch,) or labels.is_floating_point():
        raise ShapeMismatch(
            f"{what}: labels {tuple(labels.shape)} of {labels.dtype} do not fit a batch of {batch}; "
            f"integer classes ({batch},) would (mixed or smoothed targets have no single target class)"
        )
    wrong = (labels < 0) | (labels >= classes)
    if bool(wrong.any()):
        raise ShapeMismatch(
            f"{what}: label {int(labels[wrong][0])} is not in 0 to {classes - 1}; "
            "a model with one class for each label of the data set would fit"
        )


def check_temperature(what: str, temperature: float) -> float:
    """The temperature, where it is positive.

    Raises: ConfigError otherwise.
    """
    if not temperature > 0:
        raise ConfigError(f"{what} needs temperature > 0; got {temperature}")
    return float(temperature)


def logit_pairs(batch: LinkInputs, *, standardise: bool = False) -> list[tuple[Tensor, Tensor]]:
    """(student logits, teacher logits) of every pair of taps; both standardised where asked."""
    pairs = zip(batch.student, batch.teacher, strict=True)
    return [(standardised(s), standardised(t)) if standardise else (s, t) for s, t in pairs]


@METHODS.register_module()
class KD(Method):
    """Soft targets: taps the logits of both sides, (B, C) with the same C. No modules, no warm-up.

    The official CIFAR-100 objective is 0.1 · CE + 0.9 · L at T = 4. The 0.9 is this link's `weight`; the 0.1 on cross
    entropy is the config's `task_weight=0.1`, which no link can set. ImageNet (DKD's code base): T = 1, 0.5 / 0.5.
    With logit standardisation (arXiv 2403.01427): 0.1 · CE + 9 · L at T = 2 on both, so `weight=9.0`.

    Args:
        temperature: T > 0.
        standardise: bring each sample's logits, of both sides, to mean 0 and deviation 1 first.
        weight: factor on the term "kl".
        kwargs: see `Method`.
    Raises: ConfigError for a temperature that is not positive.
    """

    default_taps = (("logits", "logits"),)

    def __init__(
        self, *, temperature: float = 4.0, standardise: bool = False, weight: float = 0.9, **kwargs: Any
    ) -> None:
        super().__init__(weight=weight, **kwargs)
        self.temperature = check_temperature("KD", temperature)
        self.standardise = standardise

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        for teacher, student in zip(teacher_shapes, student_shapes, strict=True):
            check_logits("KD", teacher, student)

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        pairs = logit_pairs(batch, standardise=self.standardise)
        return {"kl": torch.stack([kd_loss(s, t, temperature=self.temperature) for s, t in pairs]).sum()}
