"""Distances between two sets of features, label statistics, and how wide their sampling error is; in float64.

A set is (N, d): one row an image. Real and generated sets have the same d.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import special

from limbeck.errors import ConfigError

BLOCK = 1000  # rows of a matrix of pairs that are in memory at once
RESAMPLES = 200
CONFIDENCE = 0.95


def check_sets(what: str, least: int, *sets: np.ndarray) -> list[np.ndarray]:
    """The sets in float64.

    Args:
        what: is computed, for the message.
        least: images that every set needs.
    Raises: ConfigError for another shape than (N, d), a different d, fewer images, or a value that is not finite.
    """
    found = [np.asarray(x, dtype=np.float64) for x in sets]
    if any(x.ndim != 2 for x in found) or len({x.shape[1] for x in found}) != 1:
        shapes = " and ".join(str(x.shape) for x in found)
        raise ConfigError(f"{what} takes features (images, d), of the same d; got {shapes}")
    fewest = min(len(x) for x in found)
    if fewest < least:
        raise ConfigError(f"{what} needs at least {least} images in each set; got {fewest}: generate more")
    for x in found:
        wrong = np.flatnonzero(~np.isfinite(x).all(axis=1))
        if len(wrong):
            raise ConfigError(
                f"{what}: features of image {wrong[0]} are not finite; look for NaN in the images or in the weights"
            )
    return found


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and unbiased covariance (d, d), divided by N − 1, of a set (N, d) with N ≥ 2."""
    return features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False))


def frechet_of_moments(mean_r: np.ndarray, cov_r: np.ndarray, mean_g: np.ndarray, cov_g: np.ndarray) -> float:
    """Fréchet distance of two Gaussians (Dowson and Landau 1982; arXiv 1706.08500).

    ‖μ_r − μ_g‖² + tr Σ_r + tr Σ_g − 2 tr (Σ_r^½ Σ_g Σ_r^½)^½. That last trace is the sum of the singular values of
    Σ_r^½ Σ_g^½, so that only roots of symmetric matrices are taken, by their eigenvalues: nothing is complex, and a
    singular covariance loses no digits, as it does where the square root is of eigenvalues near zero.

    Args:
        mean_r, mean_g: (d,). cov_r, cov_g: (d, d), symmetric, without negative eigenvalues but for rounding.

    >>> eye = np.eye(3)
    >>> round(frechet_of_moments(np.zeros(3), eye, np.full(3, 2.0), 4.0 * eye), 9)
    15.0
    """
    root = np.linalg.svd(_root(cov_r) @ _root(cov_g), compute_uv=False).sum()
    difference = mean_r - mean_g
    return float(difference @ difference + np.trace(cov_r) + np.trace(cov_g) - 2.0 * root)


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T


def frechet_distance(real: np.ndarray, generated: np.ndarray) -> float:
    """`frechet_of_moments` of the two sets (N, d) and (M, d); 0 to rounding for equal sets.

    Estimated from samples it is too large by about `frechet_bias`: compare only values of the same N, M and features.
    At least 20 d images are wanted on each side, 100 d are good.

    Raises: ConfigError, see `check_sets`; two images are the least.
    """
    real, generated = check_sets("the Fréchet distance", 2, real, generated)
    return frechet_of_moments(*moments(real), *moments(generated))


def frechet_bias(covariance: np.ndarray, real: int, generated: int) -> float:
    """What `frechet_distance` is on average between samples of one Gaussian, to the second order.

    (1/N + 1/M) (Σ_i l_i + ½ Σ_ij l_i l_j (1 + [i = j]) / (l_i + l_j)), with the eigenvalues l of the covariance.

    Args:
        covariance: (d, d). real, generated: N and M.

    >>> round(frechet_bias(np.eye(64), 2000, 10000), 3)
    0.662
    """
    found = np.clip(np.linalg.eigvalsh(covariance), 0.0, None)
    values = found[found > 0]
    pairs = np.outer(values, values) * (1.0 + np.eye(len(values))) / np.add.outer(values, values)
    return float((1.0 / real + 1.0 / generated) * (values.sum() + 0.5 * pairs.sum()))


def kernel_distance(real: np.ndarray, generated: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel k(x, y) = (x · y / d + 1)³ (arXiv 1801.01401).

    mean_{i≠j} k(r_i, r_j) + mean_{i≠j} k(g_i, g_j) − 2 mean_ij k(r_i, g_j), over all pairs: it has the mean of the
    average over random subsets that others report, and a smaller spread. Of equal distributions it is 0 on average, so
    it is often negative; never clip it.

    Raises: ConfigError, see `check_sets`; two images are the least.
    """
    real, generated = check_sets("the kernel distance", 2, real, generated)
    cross = _kernel_sum(real, generated) / (len(real) * len(generated))
    return _mean_of_others(real) + _mean_of_others(generated) - 2.0 * cross


def _mean_of_others(x: np.ndarray) -> float:
    own = ((np.einsum("nd,nd->n", x, x) / x.shape[1] + 1.0) ** 3).sum()
    return (_kernel_sum(x, x) - float(own)) / (len(x) * (len(x) - 1))


def _kernel_sum(x: np.ndarray, y: np.ndarray) -> float:
    parts = (x[i : i + BLOCK] @ y.T / x.shape[1] + 1.0 for i in range(0, len(x), BLOCK))
    return float(sum((part**3).sum() for part in parts))


# --- labels ---


def label_agreement(predicted: np.ndarray, labels: np.ndarray, classes: int) -> list[float]:
    """Percent of each class's images that a classifier takes for the class that was asked for; 0 without images.

    Args:
        predicted, labels: (M,) class indices: what the classifier says, and what was asked for.
    """
    asked = np.bincount(labels, minlength=classes)
    right = np.bincount(labels[predicted == labels], minlength=classes)
    return [100.0 * float(r) / max(int(a), 1) for r, a in zip(right, asked)]


def label_entropy(predicted: np.ndarray, classes: int) -> float:
    """Entropy of the histogram of class indices (M,) in nats; ln(classes) where every class is as frequent.

    Raises: ConfigError without images.
    """
    if not len(predicted):
        raise ConfigError("the entropy of labels needs at least one image; got none")
    return float(special.entr(np.bincount(predicted, minlength=classes) / len(predicted)).sum())


# --- sampling error ---


def bootstrap(
    statistic: Callable[..., float], *samples: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """The statistic (resamples,) of the samples drawn anew with replacement, each on its own.

    Which rows are drawn of the first sample depends on its length and the seed alone. Hence of two methods that share
    the reference as first sample, the difference of both arrays is the bootstrap of their difference.

    Args:
        statistic: takes as many arrays as there are samples.
        samples: arrays with one row an image.
    """
    drawn = [np.random.default_rng([seed, place]) for place in range(len(samples))]
    return np.array(
        [statistic(*(x[rng.integers(len(x), size=len(x))] for x, rng in zip(samples, drawn))) for _ in range(resamples)]
    )


def interval(estimate: float, resampled: np.ndarray, *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The estimate with the width of its bootstrap: percentiles of `resampled`, less its mean, plus the estimate.

    The mean of the resamples is not used: images that are drawn twice shrink covariances and distances, which moves
    every resample to one side.

    Args:
        estimate: from all images. resampled: (B,), of `bootstrap`.

    >>> interval(10.0, np.array([1.0, 2.0, 3.0]), confidence=1.0)
    (9.0, 11.0)
    """
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(resampled, [tail, 1.0 - tail]) - resampled.mean()
    return float(estimate + low), float(estimate + high)
