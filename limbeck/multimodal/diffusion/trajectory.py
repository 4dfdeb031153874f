"""DT-Visualization in numbers: when a sampler has decided on its image, and how much seeds differ by then.

Of arXiv 2503.10637, which shows the predicted images; the figures are ours. `x0s` is that of `Samples`, (N, B, …): N
steps, B seeds; images, or features of them (N, B, D).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from limbeck.errors import ConfigError, UnknownName


def commitment(
    x0s: Tensor, *, relative_to: Literal["spread", "first"] = "spread", labels: Tensor | None = None
) -> Tensor:
    """How far the image that is predicted at each step still is from the last one; 0 is decided. (N,) float64.

    - 'spread': E‖x̂_i − x̂_last‖² / E‖x̄ − x̂_last‖², x̄ the mean of the last images. 1 is nothing decided: the
      predictions are no nearer to the seeds' own images than the mean image is.
    - 'first': E‖x̂_i − x̂_last‖ / E‖x̂_first − x̂_last‖, norms not squared: 1 at the first step, whatever was decided by
      then; shows the course of one sampler, not which of two decides earlier.

    ASSUMPTION: both, and 0 where the denominator is 0 (all images equal; a sampler of one step).

    Args:
        x0s: (N, B, …). labels: (B,) where seeds are of several classes: x̄ is then each class's own mean.
    Raises: ConfigError; UnknownName.
    """
    flat = _flat(x0s)
    if relative_to not in ("spread", "first"):
        raise UnknownName("relative_to", relative_to, ("spread", "first"), "of commitment")
    if relative_to == "first":
        distance = (flat - flat[-1]).norm(dim=2).mean(1)
        return _ratio(distance, distance[0])
    last = flat[-1]
    mean = torch.empty_like(last)
    for members in _groups(labels, len(last)):
        mean[members] = last[members].mean(0)
    return _ratio((flat - last).square().sum(2).mean(1), (mean - last).square().sum(1).mean())


def pairwise_diversity(x0s: Tensor, *, labels: Tensor | None = None) -> Tensor:
    """Mean distance ‖x̂_i(a) − x̂_i(b)‖ of two seeds' predicted images at each step. (N,) float64.

    Args:
        x0s: (N, B, …). labels: (B,); pairs are then of one class, and every class counts the same.
    Raises: ConfigError for a class of one seed.
    """
    flat = _flat(x0s)
    groups = _groups(labels, flat.shape[1])
    return torch.stack([torch.stack([torch.pdist(step[g]).mean() for g in groups]).mean() for step in flat])


def _flat(x0s: Tensor) -> Tensor:
    if x0s.ndim < 3 or not x0s.shape[0]:
        raise ConfigError(f"x0s of a sampler are (steps, seeds, …), of 1 step or more; got {tuple(x0s.shape)}")
    return x0s.detach().to("cpu", torch.float64).flatten(2)


def _groups(labels: Tensor | None, seeds: int) -> list[Tensor]:
    """Indices of the seeds of each class."""
    if labels is not None and labels.shape != (seeds,):
        raise ConfigError(f"labels are of shape ({seeds},), one a seed; got {tuple(labels.shape)}")
    labels = torch.zeros(seeds, dtype=torch.int64) if labels is None else labels.cpu()
    groups = [(labels == label).nonzero().flatten() for label in labels.unique()]
    if min(map(len, groups)) < 2:
        raise ConfigError("comparing seeds takes 2 of each class or more; sample more images")
    return groups


def _ratio(value: Tensor, reference: Tensor) -> Tensor:
    return value / reference if float(reference) > 0 else torch.zeros_like(value)
