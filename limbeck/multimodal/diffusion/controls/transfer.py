"""How much of a control carries over, with intervals over images: slopes of single images, and their mean's ratio."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from limbeck.multimodal.diffusion.controls.sliders import ControlCurve
from limbeck.multimodal.diffusion.evaluation.statistics import bootstrap, interval


class Bounded(NamedTuple):
    """A figure and its 95 % bootstrap interval over images."""

    value: float
    low: float
    high: float


def image_slopes(curve: ControlCurve) -> np.ndarray:
    """Least-squares slope (B,) of each image's attribute against the scale; their mean is the curve's `slope`."""
    scales = np.asarray(curve.scales) - np.mean(curve.scales)
    return scales @ curve.values.numpy() / (scales @ scales)


def bounded_slope(slopes: np.ndarray) -> Bounded:
    """The mean of slopes (B,) of images."""
    found = float(slopes.mean())
    return Bounded(found, *interval(found, bootstrap(np.mean, slopes)))


def bounded_ratio(other: np.ndarray, own: np.ndarray) -> Bounded | None:
    """The transfer ratio, mean of `other` ÷ mean of `own`; both are drawn anew by the same images.

    None where the images do not tell what the adapter does on its own model from nothing: their resamples have slopes
    of both signs, and a ratio to them would be of noise.

    Args:
        other, own: slopes (B,) of the same noises on a model that the adapter was not trained on, and on its own.
    """
    resampled = bootstrap(np.mean, own)
    if not resampled.min() * resampled.max() > 0:
        return None

    def ratio(both: np.ndarray) -> float:
        return float(both[:, 0].mean() / both[:, 1].mean())

    both = np.stack([other, own], axis=1)
    return Bounded(ratio(both), *interval(ratio(both), bootstrap(ratio, both)))
