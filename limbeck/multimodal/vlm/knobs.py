"""The two inference knobs of a dual head: how its opinions are mixed, and how they are chosen (arXiv 2505.07675)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import ConfigError, ShapeMismatch

ALPHAS = tuple(step / 20 for step in range(21))
BETAS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0)


def mix_log_probs(ce_logits: Tensor, kd_logits: Tensor, alpha: Tensor | float, beta: Tensor | float) -> Tensor:
    """Logarithm of p = α σ(z_ce) + (1 − α) σ(z_kd / β), in at least float32.

    At α = 1 it is log σ(z_ce) exactly, whatever β; at α = 0 log σ(z_kd / β).

    Args:
        ce_logits, kd_logits: (B, K).
        alpha: share of the CE head, in [0, 1]. beta: temperature of the KD head, > 0.
    Returns: (B, K).

    >>> ce, kd = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    >>> mix_log_probs(ce, kd, 0.5, 1.0).exp()
    tensor([[0.5000, 0.5000]])
    """
    kind = torch.promote_types(ce_logits.dtype, torch.float32)
    share = torch.as_tensor(alpha, dtype=kind, device=ce_logits.device)
    ce = torch.log(share) + ce_logits.to(kind).log_softmax(-1)
    kd = torch.log1p(-share) + (kd_logits.to(kind) / beta).log_softmax(-1)
    return torch.logsumexp(torch.stack([ce, kd]), dim=0)


@dataclass(frozen=True)
class Knobs:
    """The chosen pair, and the accuracy in percent that it has on what it was chosen on."""

    alpha: float
    beta: float
    top1: float


def check_knobs(alpha: float, beta: float) -> None:
    """Raises: ConfigError unless α is in [0, 1] and β positive and finite."""
    if not 0.0 <= alpha <= 1.0 or not (beta > 0.0 and math.isfinite(beta)):
        raise ConfigError(f"a dual head needs alpha in [0, 1] and beta > 0; got alpha={alpha}, beta={beta}")


def search_knobs(
    ce_logits: Tensor,
    kd_logits: Tensor,
    labels: Tensor,
    *,
    alphas: Sequence[float] = ALPHAS,
    betas: Sequence[float] = BETAS,
) -> Knobs:
    """The grid's (α, β) with the highest accuracy; of equal ones the smallest β, then the smallest α.

    As the official code searches: β outside, α inside, both rising, a better one only where it is strictly better.

    Args:
        ce_logits, kd_logits: (N, K) of held-out samples. labels: (N,).
    Raises: ShapeMismatch; ConfigError for an empty grid, or knobs that there are not.
    """
    if ce_logits.ndim != 2 or ce_logits.shape != kd_logits.shape or labels.shape != ce_logits.shape[:1]:
        raise ShapeMismatch(
            f"knobs are chosen by logits (N, K) of both heads and labels (N,); got {tuple(ce_logits.shape)}, "
            f"{tuple(kd_logits.shape)} and {tuple(labels.shape)}"
        )
    if not len(labels) or not alphas or not betas:
        raise ConfigError("knobs are chosen on labelled samples from a grid of alphas and betas; one of them is empty")
    alphas, betas = sorted(alphas), sorted(betas)
    for alpha in alphas:
        for beta in betas:
            check_knobs(alpha, beta)
    ce, kd = ce_logits.double(), kd_logits.double()
    hits = np.array([[int((mix_log_probs(ce, kd, a, b).argmax(1) == labels).sum()) for a in alphas] for b in betas])
    row, column = divmod(int(hits.argmax()), len(alphas))  # the first of equal ones
    return Knobs(alphas[column], betas[row], 100.0 * float(hits[row, column]) / len(labels))
