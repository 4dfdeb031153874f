"""DKD: decoupled knowledge distillation (arXiv 2203.08679)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.engine.losses import check_labels, check_logits, check_temperature
from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS
from limbeck.vision.methods.kd import logit_pairs


def dkd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """KD's divergence split in a target and a non-target part that are weighted apart.

    L = α · TCKD + β · NCKD; see `dkd_terms`. KD itself is α = 1 and a β = 1 − p_y^T that differs by sample.

    Args:
        student, teacher: logits (B, C), same shape, C ≥ 2. The teacher's gradient is stopped.
        labels: classes (B,), integer.
        alpha, beta: factors on the two parts.
        temperature: T > 0.
    Returns: scalar ≥ 0, computed in float32.
    Raises: ShapeMismatch when logits or labels do not fit.
    """
    target, others = dkd_terms(student, teacher, labels=labels, temperature=temperature)
    return alpha * target + beta * others


def dkd_terms(student: Tensor, teacher: Tensor, *, labels: Tensor, temperature: float = 4.0) -> tuple[Tensor, Tensor]:
    """Target-class and non-target-class divergence.

    With p = σ(z / T), b = (p_y, 1 − p_y) and p̂ = σ over the C − 1 classes other than y:
    TCKD = T² · mean_B KL(b_T ‖ b_S), NCKD = T² · mean_B KL(p̂_T ‖ p̂_S).

    The official code takes log(1 − p_y) from a sum of probabilities, which underflows to −∞ for a sure student, and
    hides the target of p̂ by subtracting 1000. Here log b comes from log-sum-exp and p̂ leaves the target out: the values
    agree wherever the official ones are finite. With C = 2 one class is left, so NCKD is 0.

    Args: as for `dkd_loss`.
    Returns: (TCKD, NCKD), scalars.
    Raises: ShapeMismatch when logits or labels do not fit.

    >>> z = torch.tensor([[3.0, 1.0, 0.0]])
    >>> tckd, nckd = dkd_terms(z, z + torch.tensor([[5.0, 0.0, 0.0]]), labels=torch.tensor([0]))
    >>> tckd.item() > 0.1, nckd.item()  # the two differ in the target alone
    (True, 0.0)
    """
    check_logits("DKD", tuple(teacher.shape), tuple(student.shape))
    check_labels("DKD", labels, batch=len(student), classes=student.shape[1])
    z_s, z_t = student.float() / temperature, teacher.detach().float() / temperature
    labels = labels.long().unsqueeze(1)
    # Column indices (B, C − 1) that jump over the target; a boolean mask would make a GPU wait for its count.
    rest = torch.arange(student.shape[1] - 1, device=student.device).expand(len(student), -1)
    rest = rest + (rest >= labels)
    target = _kl(_log_binary(z_s, labels, rest), _log_binary(z_t, labels, rest))
    others = _kl(F.log_softmax(z_s.gather(1, rest), dim=1), F.log_softmax(z_t.gather(1, rest), dim=1))
    return temperature**2 * target, temperature**2 * others


def _log_binary(z: Tensor, labels: Tensor, rest: Tensor) -> Tensor:
    """log (p_y, 1 − p_y), (B, 2)."""
    log_p = F.log_softmax(z, dim=1)
    return torch.cat([log_p.gather(1, labels), log_p.gather(1, rest).logsumexp(dim=1, keepdim=True)], dim=1)


def _kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    return F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")


@METHODS.register_module()
class DKD(Method):
    """Decoupled soft targets: taps the logits of both sides, (B, C) with the same C, and reads the labels.

    The official trainer ramps the weight, min(epoch / 20, 1) on CIFAR-100 and 1 epoch on ImageNet: set
    `schedule=dict(type='epochs', warmup_epochs=20, total_epochs=240)`. Cross entropy keeps weight 1. β by pair: 2 for
    ResNet-56 → 20 and 110 → 32, 6 for the WRN and VGG pairs, 8 for ResNet-32x4 → * and ResNet-50 → MobileNetV2; on
    ImageNet, T = 1, 0.5 for ResNet-34 → 18 and 2 for ResNet-50 → MobileNetV1. With logit standardisation (arXiv
    2403.01427) α and β are both 9 times as large and T = 2: `weight=9.0`, cross entropy still at weight 1.

    Args:
        alpha, beta: factors on the target and the non-target part.
        temperature: T > 0.
        standardise: bring each sample's logits, of both sides, to mean 0 and deviation 1 first.
        weight: factor on the term "dkd".
        kwargs: see `Method`.
    Raises: ConfigError for a temperature that is not positive.
    """

    default_taps = (("logits", "logits"),)

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 4.0,
        standardise: bool = False,
        weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight=weight, **kwargs)
        self.alpha, self.beta = float(alpha), float(beta)
        self.temperature = check_temperature("DKD", temperature)
        self.standardise = standardise

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        for teacher, student in zip(teacher_shapes, student_shapes, strict=True):
            check_logits("DKD", teacher, student)

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        options = {"labels": batch.targets, "alpha": self.alpha, "beta": self.beta, "temperature": self.temperature}
        pairs = logit_pairs(batch, standardise=self.standardise)
        return {"dkd": torch.stack([dkd_loss(s, t, **options) for s, t in pairs]).sum()}
