"""Logit standardisation in knowledge distillation (arXiv 2403.01427): a step before any loss on logits."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.errors import ShapeMismatch

EPS = 1e-7  # the official code's


def standardise(logits: Tensor) -> Tensor:
    """Each sample's logits with mean 0 and deviation 1 over the classes.

    Z(z) = (z − mean_c z) / (std_c z + 1e-7), std with C − 1 in the denominator. The gradient passes through mean and
    std, so it is orthogonal to the vector of ones and to z − mean z: a loss of Z(z) cannot see a·z + b, a > 0.

    A sample whose std is not above 1e-7 has no order of classes. It gives 0 with gradient 0 (our choice): the official
    code's gradient there is NaN at std 0, and 1e7 times too large just above.

    Args:
        logits: (B, C) or (B, C, H, W), C ≥ 2.
    Returns: float32, the same shape.
    Raises: ShapeMismatch for one class, which has no deviation.

    >>> standardise(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]))
    tensor([[-1.0000,  0.0000,  1.0000],
            [ 0.0000,  0.0000,  0.0000]])
    """
    if logits.ndim < 2 or logits.shape[1] < 2:
        raise ShapeMismatch(
            f"logits {tuple(logits.shape)} have no deviation over classes; (B, C) with two classes or more would fit"
        )
    z = logits.float()
    centred = z - z.mean(dim=1, keepdim=True)
    centred = centred - centred.mean(dim=1, keepdim=True)  # equal large logits leave the mean's rounding error
    variance = centred.square().sum(dim=1, keepdim=True) / (z.shape[1] - 1)
    spread = variance > EPS**2
    # Both branches of `where` are differentiated, and the root has no slope at 0.
    std = torch.where(spread, variance, 1.0).sqrt()
    return torch.where(spread, centred / (std + EPS), 0.0)
