"""MEALV2: distilling an ensemble with soft labels and a discriminator on the logits (arXiv 2009.08453)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.losses import check_logits
from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import UnknownName
from limbeck.vision.methods.ensemblekd import check_ensemble, logits_of

ADVERSARIES = ("code", "reversal", "off")


def soft_label_loss(student: Tensor, teachers: Sequence[Tensor]) -> Tensor:
    """Cross entropy of the student with the mean of the teachers' probabilities.

    L = −mean_B Σ_c p_c log σ(z_S)_c, p = (1/K) Σ_k σ(z_k). KL(p ‖ σ(z_S)) plus the entropy of p; no temperature.

    Args:
        student: logits (B, C).
        teachers: K ≥ 1 tensors of that shape. Their gradients are stopped.
    Returns: scalar ≥ 0, computed in float32.
    Raises: ShapeMismatch when a teacher's logits do not fit.

    >>> soft_label_loss(torch.zeros(2, 4), [torch.randn(2, 4)]).item()  # log 4, whatever the teacher
    1.3862943649291992
    """
    for teacher in teachers:
        check_logits("MEALV2", tuple(teacher.shape), tuple(student.shape))
    return F.cross_entropy(student.float(), soft_labels(teachers))


def soft_labels(teachers: Sequence[Tensor]) -> Tensor:
    """Mean of the teachers' probabilities, (B, C); rows sum to 1."""
    return torch.stack([teacher.detach().float().softmax(dim=1) for teacher in teachers]).mean(0)


def mean_logits(teachers: Sequence[Tensor]) -> Tensor:
    """Mean of the teachers' raw logits, (B, C): what the discriminator sees of them."""
    return torch.stack([teacher.detach().float() for teacher in teachers]).mean(0)


def discriminator_loss(student_scores: Tensor, teacher_scores: Tensor) -> Tensor:
    """Binary cross entropy of two outputs a row: target (1, 0) for the student's rows, (0, 1) for the teachers'.

    Args:
        student_scores, teacher_scores: the discriminator's outputs (B, 2).
    Returns: scalar, mean over 2B × 2. With outputs ≥ 0, as the discriminator's are, at least log(2) / 2.
    """
    scores = torch.cat([student_scores, teacher_scores])
    targets = torch.zeros_like(scores)
    targets[: len(student_scores), 0] = 1.0
    targets[len(student_scores) :, 1] = 1.0
    return F.binary_cross_entropy_with_logits(scores, targets)


class _Reversal(torch.autograd.Function):
    """The identity, whose gradient changes sign."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return -grad_outputs[0]


class Discriminator(nn.Sequential):
    """C → C/8 → C/64 → 2 with a ReLU after each layer, the last included, as in the official code; (B, C) to (B, 2).

    Hidden widths are at least 4, which counts for C < 256 (our choice: the official code has C = 1000). Through the
    last ReLU an unlucky draw gives zeros for every input and never trains; few units make it likely. Weights are
    PyTorch's default, drawn again until both outputs follow noise of the size of logits.
    """

    def __init__(self, classes: int) -> None:
        first, second = max(classes // 8, 4), max(classes // 64, 4)
        layers = [nn.Linear(classes, first), nn.Linear(first, second), nn.Linear(second, 2)]
        super().__init__(*(module for layer in layers for module in (layer, nn.ReLU())))
        noise = torch.randn(32, classes)
        probes = torch.cat([torch.zeros(1, classes), noise, 4.0 * noise])
        for _ in range(1000):
            if self._alive(probes):
                break
            for layer in layers:
                layer.reset_parameters()

    @torch.enable_grad()
    def _alive(self, probes: Tensor) -> bool:
        """Both outputs are positive and follow the input: at zero, where a student starts, and for half the probes."""
        probes = probes.clone().requires_grad_()
        scores = self(probes)
        moves = torch.autograd.grad(scores.sum(), probes)[0].abs().amax(dim=1, keepdim=True) > 0
        good = (scores > 0) & moves
        return bool(good[0].all()) and bool((good.float().mean(dim=0) >= 0.5).all())


@METHODS.register_module()
class MEALV2(Method):
    """Ensemble distillation on the final logits alone: taps the logits of every teacher and the student, (B, C).

    L = `soft_label_loss` + `discriminator_loss`. No hard label: set the config's `task_weight=0.0`. The official
    student starts from pretrained weights and trains without weight decay, at rate 0.01 to epoch 100, then 0.001.

    The official code adds the discriminator's loss with one sign for everything: the student minimises it too, and so
    helps the discriminator ('code'). `adversary='reversal'` turns the sign of its gradient into the student, which is
    the game that the paper describes (our reading); 'off' leaves the discriminator out.

    The discriminator has an optimiser of its own, SGD with the rate 0.01 that the official code really uses (it
    declares 1e-4, and its schedule overwrites that), and is dropped with the link.

    Args:
        adversary: 'code', 'reversal' or 'off'.
        weight: factor on the terms "soft" and "discriminator".
        kwargs: see `Method`; `teacher=['a', 'b']` names the teachers.
    Raises: UnknownName for another adversary.
    """

    default_taps = (("logits", "logits"),)
    many_teachers = True
    optimizer = dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=0.0)
    assumption = (
        "Discriminator widths of at least 4, a first draw that is not dead, and the reversed gradient; the paper's "
        "student starts from ImageNet weights."
    )

    def __init__(self, *, adversary: str = "code", weight: float = 1.0, **kwargs: Any) -> None:
        super().__init__(weight=weight, **kwargs)
        if adversary not in ADVERSARIES:
            raise UnknownName("adversary", adversary, ADVERSARIES, "of MEALV2")
        self.adversary = adversary

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        check_ensemble("MEALV2", self.shapes, teacher_shapes, student_shapes[0])
        if self.adversary != "off":
            self.discriminator = Discriminator(student_shapes[0][1])

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        student, teachers = batch.student[0].float(), logits_of(batch)
        terms = {"soft": soft_label_loss(student, teachers)}
        if self.adversary != "off":
            seen = _Reversal.apply(student) if self.adversary == "reversal" else student
            with torch.autocast(student.device.type, enabled=False):
                scores = self.discriminator(seen), self.discriminator(mean_logits(teachers))
            terms["discriminator"] = discriminator_loss(*scores)
        return terms
