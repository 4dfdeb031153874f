"""BD-KD: balancing the divergences for online knowledge distillation (arXiv 2212.12965)."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.engine.losses import check_logits, check_temperature
from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError
from limbeck.vision.methods.kd import logit_pairs

Role = Literal["student", "teacher"]


def balanced_loss(
    student: Tensor, teacher: Tensor, *, delta: float = 2.0, temperature: float = 3.0, normalise: bool = False
) -> Tensor:
    """The student's term: forward and reverse divergence, weighted for each sample by which side is surer.

    With p = σ(z / T) and H its entropy, L = T² · mean_B [f KL(p_T ‖ p_S) + r KL(p_S ‖ p_T)], where
    (f, r) = (δ, 1) where H_S < H_T: the student is too sure, and the forward divergence makes it cover more classes;
    (f, r) = (1, δ) elsewhere: the reverse divergence makes it settle. No gradient passes through the weights.

    Args:
        student, teacher: logits (B, C), same shape. The teacher's gradient is stopped.
        delta: δ ≥ 1; 1 is Jeffreys' divergence, symmetric in the two.
        temperature: T > 0.
        normalise: divide by f + r = 1 + δ.
    Returns: scalar ≥ 0, computed in float32.
    Raises: ShapeMismatch when the two are not (B, C) of one shape.

    >>> sure, unsure = torch.tensor([[5.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    >>> balanced_loss(sure, unsure) == balanced_loss(unsure, sure)  # the weights change sides as well
    tensor(True)
    """
    log_s, log_t = _log_probabilities(student, teacher, temperature)
    forward, reverse = _kl(log_t, log_s), _kl(log_s, log_t)
    too_sure = _entropy(log_s.detach()) < _entropy(log_t)
    loss = torch.where(too_sure, delta * forward + reverse, forward + delta * reverse)
    return temperature**2 * loss.mean() / (1.0 + delta if normalise else 1.0)


def reverse_loss(trained: Tensor, other: Tensor, *, temperature: float = 3.0) -> Tensor:
    """The teacher's term: L = T² · mean_B KL(p_trained ‖ p_other), whose first argument is the one that is trained.

    Args:
        trained, other: logits (B, C), same shape: of the teacher that learns, and of the student that it watches. The
            other's gradient is stopped.
        temperature: T > 0.
    Returns: scalar ≥ 0, computed in float32.
    Raises: ShapeMismatch when the two are not (B, C) of one shape.
    """
    log_p, log_q = _log_probabilities(trained, other, temperature)
    return temperature**2 * _kl(log_p, log_q).mean()


def _log_probabilities(trained: Tensor, other: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    check_logits("BDKD", tuple(other.shape), tuple(trained.shape))
    log_p, log_q = (F.log_softmax(z.float() / temperature, dim=1) for z in (trained, other.detach()))
    return log_p, log_q


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) of each sample, (B,); differentiable in both."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def _entropy(log_p: Tensor) -> Tensor:
    """(B, C) to (B,)."""
    return -(log_p.exp() * log_p).sum(dim=1)


@METHODS.register_module()
class BDKD(Method):
    """Balanced divergences: taps the logits of both sides, (B, C) with the same C. No modules.

    Against a frozen teacher it is a plain link. The paper's online form trains both members, each with its own cross
    entropy, and needs two links, of which the second trains the teacher. Each side takes the other as a constant:

    `links=[dict(type='BDKD'), dict(type='BDKD', role='teacher', teacher='student', student='teacher')]`, with
    `members=dict(teacher=dict(type='trained', …), student=dict(type='trained', …))`. More networks are more links.

    Top-1 and ECE (`ClassificationMetric`) belong together here. No official code is known, and abstract and summaries
    give the idea alone: the form of the weights, δ, T and all weights of 1 are our assumption.

    Args:
        role: 'student' for the balanced term, 'teacher' for the reverse divergence.
        delta: δ ≥ 1; the stressed divergence counts this much more. Of the student's role.
        temperature: T > 0.
        normalise: divide the student's term by 1 + δ.
        weight: factor on the term, "balanced" or "reverse".
        kwargs: see `Method`.
    Raises: ConfigError for an unknown role, δ below 1, or a temperature that is not positive.
    """

    default_taps = (("logits", "logits"),)
    assumption = "Reconstructed from the abstract: sample weights by the sign of the entropy gap, delta 2, T 3."

    def __init__(
        self,
        *,
        role: Role = "student",
        delta: float = 2.0,
        temperature: float = 3.0,
        normalise: bool = False,
        weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight=weight, **kwargs)
        if role not in get_args(Role):
            raise ConfigError(f"role of BDKD is 'student' or 'teacher'; got {role!r}")
        if not delta >= 1:
            raise ConfigError(f"BDKD needs delta >= 1; got {delta} (below 1 it would stress the other divergence)")
        self.role = role
        self.delta, self.normalise = float(delta), normalise
        self.temperature = check_temperature("BDKD", temperature)

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        for teacher, student in zip(teacher_shapes, student_shapes, strict=True):
            check_logits("BDKD", teacher, student)

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        pairs = logit_pairs(batch)
        if self.role == "teacher":
            return {"reverse": torch.stack([reverse_loss(s, t, temperature=self.temperature) for s, t in pairs]).sum()}
        options = {"delta": self.delta, "temperature": self.temperature, "normalise": self.normalise}
        return {"balanced": torch.stack([balanced_loss(s, t, **options) for s, t in pairs]).sum()}
