"""Rules for the logit scale of a teacher whose towers were never trained together; none looks at test images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from limbeck.errors import ConfigError

LOW, HIGH = 1e-2, 1e4  # between which a scale is looked for


def scale_by_nll(cosines: Tensor, labels: Tensor) -> float:
    """The scale s with the least mean cross entropy of σ(s · cosines): temperature scaling (arXiv 1706.04599).

    Args:
        cosines: of labelled validation images with the classes, (N, K). labels: int64 (N,).
    Raises: ConfigError when there are none, or none is needed: fewer than two classes.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    values = _checked(cosines)
    rows, right = np.arange(len(values)), labels.cpu().numpy()

    def nll(log_scale: float) -> float:
        return -float(log_softmax(math.exp(log_scale) * values, axis=1)[rows, right].mean())

    found: Any = minimize_scalar(nll, bounds=(math.log(LOW), math.log(HIGH)), method="bounded")
    return math.exp(found.x)


def scale_by_entropy(cosines: Tensor, share: float = 0.5) -> float:
    """The scale at which the mean entropy of the predictions is `share` of the most that K classes allow, ln K.

    A few hundred images without labels are enough. The mean entropy falls as the scale rises, so there is one answer.

    Args:
        cosines: of images with the classes, (N, K).
        share: in (0, 1). ASSUMPTION: a half, for lack of a published rule.
    Raises: ConfigError when there are no images, fewer than two classes, a share out of range, or none that fits (all
        cosines of an image equal).
    """
    from scipy.optimize import brentq

    values = _checked(cosines)
    if not 0.0 < share < 1.0:
        raise ConfigError(f"share is between 0 and 1, both left out; got {share}")
    wanted = share * math.log(values.shape[1])

    def excess(log_scale: float) -> float:
        return mean_entropy(values, math.exp(log_scale)) - wanted

    low, high = math.log(LOW), math.log(HIGH)
    if not excess(low) > 0.0 > excess(high):
        raise ConfigError(
            f"no scale from {LOW:g} to {HIGH:g} gives a mean entropy of {wanted:.3f}; choose another share"
        )
    return math.exp(float(brentq(excess, low, high, xtol=1e-9)))  # type: ignore[arg-type]


def mean_entropy(cosines: np.ndarray, scale: float) -> float:
    """Mean entropy in nats of σ(scale · cosines), (N, K)."""
    from scipy.special import log_softmax

    log_p = log_softmax(scale * cosines, axis=1)
    return float(-(np.exp(log_p) * log_p).sum(1).mean())


def _checked(cosines: Tensor) -> np.ndarray:
    if cosines.ndim != 2 or not len(cosines) or cosines.shape[1] < 2:
        raise ConfigError(f"cosines are (images, classes), at least (1, 2); got {tuple(cosines.shape)}")
    return cosines.detach().cpu().double().numpy()
