"""What a loop of active learning reports of its labelled set, and of its accuracy as labels grow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.integrate import trapezoid
from scipy.stats import entropy

from limbeck.engine.selection import Pool, Progress, silent
from limbeck.errors import ConfigError
from limbeck.multimodal.vlm.strategies._k_centre import Euclidean, Nearest


@dataclass(frozen=True, slots=True)
class ClassCoverage:
    """How labels spread over classes.

    classes: K. covered: classes with at least one label.
    imbalance: largest ÷ smallest count among covered classes, ≥ 1; None without labels. Classes without labels are left
        out, since they would make it infinite: `covered` tells of them.
    entropy: of the label histogram over all K, divided by log K, in [0, 1]; 1 is balanced; None without labels.
    """

    classes: int
    covered: int
    imbalance: float | None
    entropy: float | None


def class_coverage(labels: np.ndarray, classes: int) -> ClassCoverage:
    """How the labels (L,), in 0 … classes − 1, spread over the classes.

    Raises: ConfigError for a label out of range or fewer than two classes.

    >>> class_coverage(np.array([0, 0, 1, 1]), 4)
    ClassCoverage(classes=4, covered=2, imbalance=1.0, entropy=0.5)
    """
    found = np.asarray(labels, dtype=np.int64)
    if classes < 2 or (found.size and (found.min() < 0 or found.max() >= classes)):
        raise ConfigError(f"coverage: labels have to be in 0 to {classes - 1} of two classes or more")
    counts = np.bincount(found, minlength=classes)
    present = counts[counts > 0]
    if not len(present):
        return ClassCoverage(classes, 0, None, None)
    balance = float(entropy(counts)) / float(np.log(classes))
    return ClassCoverage(classes, len(present), float(present.max() / present.min()), min(balance, 1.0))


def covering_radius(
    probabilities: np.ndarray, ids: np.ndarray, centres: np.ndarray, progress: Progress = silent
) -> float:
    """max_{x ∈ ids} min_{c ∈ centres} ‖p(x) − p(c)‖₂, in [0, √2]: what PCoreSet makes small. In blocks.

    Args:
        probabilities: (N, K), may be memory-mapped. ids, centres: rows of it; centres are usually the labelled images.
    Returns: 0 where `ids` is empty.
    Raises: ConfigError without centres.
    """
    if not len(centres):
        raise ConfigError("covering radius: there is no labelled image to measure from")
    near = Nearest(Euclidean(probabilities), np.sort(np.asarray(ids, dtype=np.int64)))
    near.add(np.sort(np.asarray(centres, dtype=np.int64)), progress)
    return float(np.sqrt(near.squared.max(initial=0.0)))


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Jaccard index of two sets of chosen ids: common ÷ all, in [0, 1]; 1 of two empty ones."""
    a, b = np.unique(first), np.unique(second)
    every = len(np.union1d(a, b))
    return len(np.intersect1d(a, b, assume_unique=True)) / every if every else 1.0


def area_under_curve(labels: Sequence[float], accuracy: Sequence[float]) -> float:
    """Area under accuracy against the number of labels, divided by the range of labels: a mean accuracy.

    A = 1 / (l_R − l_0) · ∫ acc(l) dl by the trapezoidal rule, so between the smallest and the largest accuracy, in
    their unit. The axis is linear, not logarithmic. Curves are comparable only over the same range of labels.

    Args:
        labels: (R + 1,) labelled images of each round, increasing. accuracy: (R + 1,), one a round.
    Raises: ConfigError for fewer than two rounds, unequal lengths, values that are not finite or labels that do not
        increase.

    >>> area_under_curve([10, 20, 40], [0.5, 0.7, 0.7])
    0.6666666666666666
    """
    x, y = np.asarray(labels, dtype=np.float64), np.asarray(accuracy, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2:
        raise ConfigError(f"area under the curve: two rounds or more, one accuracy each; got {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all() and (np.diff(x) > 0).all()):
        raise ConfigError("area under the curve: labels have to increase, and all values to be finite")
    return float(trapezoid(y, x) / (x[-1] - x[0]))


def coverage_of(pool: Pool, classes: int) -> dict[str, float]:
    """How the labelled images cover the classes and, where probabilities are there, the pool."""
    found = class_coverage(pool.labels, classes)
    values = {"covered": float(found.covered), "imbalance": found.imbalance, "entropy": found.entropy}
    if pool.probabilities is not None and len(pool.unlabelled):
        values["radius"] = covering_radius(pool.probabilities, pool.unlabelled, pool.labelled)
    return {name: value for name, value in values.items() if value is not None}
