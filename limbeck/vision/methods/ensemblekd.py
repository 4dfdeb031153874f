"""EnsembleKD: soft targets from the mean of several teachers (arXiv 1503.02531, section 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.engine.losses import check_logits, check_temperature
from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import ShapeMismatch, UnknownName
from limbeck.vision.methods.kd import kd_loss

AVERAGES = ("logits", "probabilities")


def ensemble_kd_loss(
    student: Tensor, teachers: Sequence[Tensor], *, temperature: float = 4.0, average: str = "logits"
) -> Tensor:
    """KD towards the mean of K teachers: L = T² · mean_B KL(p ‖ σ(z_S / T)).

    With average 'logits' p = σ(mean_k z_k / T), the renormalised geometric mean of the teachers' distributions; with
    'probabilities' p = mean_k σ(z_k / T), the arithmetic one. One teacher makes either `kd_loss`.

    Args:
        student: logits (B, C).
        teachers: K ≥ 1 tensors of that shape. Their gradients are stopped.
        temperature: T > 0.
        average: 'logits' or 'probabilities'.
    Returns: scalar ≥ 0, computed in float32.
    Raises: ShapeMismatch when a teacher's logits do not fit.

    >>> sure = torch.tensor([[6.0, 0.0]])
    >>> loss = ensemble_kd_loss(torch.zeros(1, 2), [sure, -sure, sure, -sure])  # contrary teachers say nothing
    >>> round(loss.item(), 6)
    0.0
    """
    for teacher in teachers:
        check_logits("EnsembleKD", tuple(teacher.shape), tuple(student.shape))
    stacked = torch.stack([teacher.detach().float() for teacher in teachers])
    # KD reads its teacher through a softmax, so the mean's log-probabilities times T stand for its logits.
    mean = stacked.mean(0) if average == "logits" else temperature * log_mean(stacked / temperature)
    return kd_loss(student, mean, temperature=temperature)


def log_mean(logits: Tensor) -> Tensor:
    """log mean_k σ(z_k), the mean of K distributions: (K, B, C) to (B, C)."""
    return F.log_softmax(logits, dim=-1).logsumexp(dim=0) - math.log(len(logits))


def logits_of(batch: LinkInputs, index: int = 0) -> list[Tensor]:
    """Every teacher's tap number `index`; the one teacher's where the link names one."""
    return [taps[index] for taps in batch.teachers or [batch.teacher]]


def check_ensemble(what: str, shapes: dict[str, Shapes], teacher_shapes: Shapes, student: tuple[int, ...]) -> None:
    """Check that every teacher's first tap is logits that fit the student's.

    Raises: ShapeMismatch, naming the teacher.
    """
    for name, found in (shapes or {"teacher": teacher_shapes}).items():
        try:
            check_logits(what, found[0], student)
        except ShapeMismatch as error:
            raise ShapeMismatch(f"{error} (teacher {name!r})") from None


@METHODS.register_module()
class EnsembleKD(Method):
    """Soft targets of an ensemble: taps the logits of every teacher and the student, (B, C). No modules.

    Beside cross entropy as `KD` is: the CIFAR-100 objective is 0.1 · CE + 0.9 · L at T = 4, `task_weight=0.1` in the
    config. The order of the teachers does not count.

    Args:
        temperature: T > 0.
        average: what is averaged over the teachers, 'logits' or 'probabilities'.
        weight: factor on the term "kl".
        kwargs: see `Method`; `teacher=['a', 'b', …]` names the teachers.
    Raises: ConfigError for a temperature that is not positive; UnknownName for another average.
    """

    default_taps = (("logits", "logits"),)
    many_teachers = True

    def __init__(
        self, *, temperature: float = 4.0, average: str = "logits", weight: float = 0.9, **kwargs: Any
    ) -> None:
        super().__init__(weight=weight, **kwargs)
        if average not in AVERAGES:
            raise UnknownName("average", average, AVERAGES, "of EnsembleKD")
        self.temperature = check_temperature("EnsembleKD", temperature)
        self.average = average

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        check_ensemble("EnsembleKD", self.shapes, teacher_shapes, student_shapes[0])

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        options = {"temperature": self.temperature, "average": self.average}
        return {"kl": ensemble_kd_loss(batch.student[0], logits_of(batch), **options)}
