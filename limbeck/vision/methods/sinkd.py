"""SinKD: Sinkhorn distance minimization for knowledge distillation (arXiv 2402.17110)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limbeck.engine.losses import check_logits, check_temperature
from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError
from limbeck.vision.methods.kd import logit_pairs


def sinkd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 2.0,
    epsilon: float = 0.1,
    iterations: int = 20,
    normalise: bool = True,
) -> Tensor:
    """Entropic transport cost between a batch of student predictions and the same batch of teacher predictions.

    With p = σ(z_S / T), q = σ(z_T / T) and the plan P of `sinkhorn_plan`:
    D_ij = ‖p_i − q_j‖₁, L = Σ_ij P_ij D_ij, over B where `normalise`. The gradient passes through the plan.

    Each sample weighs 1, so that the sum of the paper grows with B. Equal members cost a little more than 0, as the
    plan keeps mass e^(−D/ε) off the diagonal. L does not see which student sample belongs to which teacher sample.

    Args:
        student, teacher: logits (B, C), same shape. The teacher's gradient is stopped.
        temperature: T > 0.
        epsilon: ε > 0, how much the plan is blurred.
        iterations: rounds of rows, then columns.
        normalise: divide by B.
    Returns: scalar in [0, 2], times B without `normalise`; computed in float32.
    Raises: ShapeMismatch when the two are not (B, C) of one shape.

    >>> z = 20.0 * torch.eye(3)
    >>> bool(sinkd_loss(z, z) < 1e-3), bool(sinkd_loss(z[[1, 2, 0]], z) < 1e-3)  # blind to the pairing
    (True, True)
    """
    check_logits("SinKD", tuple(teacher.shape), tuple(student.shape))
    p, q = ((z.float() / temperature).softmax(dim=1) for z in (student, teacher.detach()))
    cost = torch.cdist(p, q, p=1.0)
    total = (sinkhorn_plan(cost, epsilon=epsilon, iterations=iterations) * cost).sum()
    return total / len(cost) if normalise else total


def sinkhorn_plan(cost: Tensor, *, epsilon: float = 0.1, iterations: int = 20) -> Tensor:
    """The kernel e^(−D/ε), scaled to rows and columns that sum to 1.

    Columns come last in each round, so their sums are exact and those of the rows nearly. The logarithm of the plan is
    what is kept: in float32 the kernel itself underflows below ε of about 0.02.

    Args:
        cost: D (B, B).
        epsilon: ε > 0.
        iterations: rounds, ≥ 1.
    Returns: (B, B), ≥ 0.
    """
    log_plan = -cost / epsilon
    for _ in range(iterations):
        log_plan = log_plan - log_plan.logsumexp(dim=1, keepdim=True)
        log_plan = log_plan - log_plan.logsumexp(dim=0, keepdim=True)
    return log_plan.exp()


@METHODS.register_module()
class SinKD(Method):
    """Transport between batches of predictions: taps the logits of both sides, (B, C) with the same C. No modules.

    It compares sets: a student that gives every image some other image's prediction pays nothing. Never use it without
    a term that compares sample by sample; on vision we take KD's objective and add this link:
    `task_weight=0.1, links=[dict(type='KD', weight=0.9, temperature=4.0), dict(type='SinKD', weight=0.1)]`.

    The paper is about language models. Its code sums over the batch (`normalise=False`) with weight 0.001, takes T = 2
    whatever the argument says, ε = 0.1 and 20 rounds. No official vision setting exists: dividing by B and the weight,
    to be searched in 0.1 … 1, are our assumption.

    Args:
        temperature: T > 0.
        epsilon: ε > 0.
        iterations: rounds of rows and columns, ≥ 1.
        normalise: divide by B, so that the weight does not depend on the batch size.
        weight: factor on the term "sinkhorn".
        kwargs: see `Method`.
    Raises: ConfigError for a temperature, ε or number of rounds that is not positive.
    """

    default_taps = (("logits", "logits"),)
    assumption = "No official vision setting: the mean over the batch, its weight and the pairing with KD."

    def __init__(
        self,
        *,
        temperature: float = 2.0,
        epsilon: float = 0.1,
        iterations: int = 20,
        normalise: bool = True,
        weight: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight=weight, **kwargs)
        if not epsilon > 0:
            raise ConfigError(f"SinKD needs epsilon > 0; got {epsilon}")
        if iterations < 1:
            raise ConfigError(f"SinKD needs iterations >= 1; got {iterations}")
        self.temperature = check_temperature("SinKD", temperature)
        self.epsilon, self.iterations, self.normalise = float(epsilon), int(iterations), normalise

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        for teacher, student in zip(teacher_shapes, student_shapes, strict=True):
            check_logits("SinKD", teacher, student)

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        options: dict[str, Any] = {name: getattr(self, name) for name in ("temperature", "epsilon", "iterations")}
        losses = [sinkd_loss(s, t, normalise=self.normalise, **options) for s, t in logit_pairs(batch)]
        return {"sinkhorn": torch.stack(losses).sum()}
