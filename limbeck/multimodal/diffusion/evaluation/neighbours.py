"""What nearest neighbours say of generated images: precision, recall, density, coverage, diversity, memorisation.

Sets are features (N, d), real R and generated G; distances are Euclidean, in float64, without the expansion
‖a‖² − 2 a·b + ‖b‖², so that the distance of equal rows is 0 exactly.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.spatial.distance import cdist

from limbeck.errors import ConfigError
from limbeck.multimodal.diffusion.evaluation.statistics import BLOCK, check_sets


def radii(features: np.ndarray, k: int) -> np.ndarray:
    """ρ_k (N,): each row's distance to its k-th nearest neighbour in the set without itself.

    Raises: ConfigError for k < 1, or fewer than k + 1 rows.
    """
    if k < 1:
        raise ConfigError(f"neighbours are counted from 1; got k={k}")
    (features,) = check_sets(f"a radius of {k} neighbours", k + 1, features)
    # The row itself is among the k + 1 nearest, at distance 0.
    parts = [np.partition(block, k, axis=1)[:, k] for _, block in _blocks(features, features)]
    return np.concatenate(parts)


def _blocks(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Distances of rows of x to all of y, (rows, len(y)), block by block."""
    for start in range(0, len(x), BLOCK):
        rows = slice(start, start + BLOCK)
        yield rows, cdist(x[rows], y)


def precision_recall(real: np.ndarray, generated: np.ndarray, k: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Which generated images lie among the real ones, and which real ones among the generated (arXiv 1904.06991).

    precision_j = [∃ i: ‖G_j − R_i‖ ≤ ρ_k(R_i)] and recall_i = [∃ j: ‖R_i − G_j‖ ≤ ρ_k(G_j)]; their means are the two
    figures. Both depend on N, M, k and d, and are below 1 for equal distributions, as for two halves of real data.

    Args:
        real: (N, d). generated: (M, d), with N = M as in the paper. ASSUMPTION: their 50,000 are 5,000 in our suites.
    Returns: precision (M,) and recall (N,), each 0.0 or 1.0.
    Raises: ConfigError for fewer than k + 1 images on a side, or as `check_sets` says.
    """
    real, generated = check_sets(f"precision and recall with k={k}", k + 1, real, generated)
    around_real, around_generated = radii(real, k), radii(generated, k)
    precision, recall = np.zeros(len(generated)), np.zeros(len(real), dtype=bool)
    for rows, distances in _blocks(generated, real):
        precision[rows] = (distances <= around_real).any(axis=1)
        recall |= (distances <= around_generated[rows, None]).any(axis=0)
    return precision, recall.astype(np.float64)


def density_coverage(real: np.ndarray, generated: np.ndarray, k: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """How many real balls hold each generated image, and which real balls hold one (arXiv 2002.09797).

    density_j = 1/k Σ_i [‖G_j − R_i‖ ≤ ρ_k(R_i)], coverage_i = [min_j ‖R_i − G_j‖ ≤ ρ_k(R_i)]; their means are the two
    figures. Of equal distributions the density is 1 on average (it may exceed 1), the coverage `expected_coverage`.

    Args:
        real: (N, d). generated: (M, d).
    Returns: density (M,), in steps of 1/k, and coverage (N,), 0.0 or 1.0.
    Raises: ConfigError for fewer than k + 1 images on a side, or as `check_sets` says.
    """
    real, generated = check_sets(f"density and coverage with k={k}", k + 1, real, generated)
    around_real = radii(real, k)
    density, coverage = np.zeros(len(generated)), np.zeros(len(real), dtype=bool)
    for rows, distances in _blocks(generated, real):
        inside = distances <= around_real
        density[rows] = inside.sum(axis=1) / k
        coverage |= inside.any(axis=0)
    return density, coverage.astype(np.float64)


def expected_coverage(real: int, generated: int, k: int = 5) -> float:
    """Coverage of equal distributions on average, whatever they are: 1 − Π_{a=1..k} (N − a) / (N + M − a).

    >>> round(expected_coverage(1000, 1000), 3)
    0.969
    """
    order = np.arange(1, k + 1)
    return float(1.0 - np.prod((real - order) / (real + generated - order)))


# --- diversity ---


def distances_within_class(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean distance (M,) of each image to the others of its class; NaN for the only one of a class.

    Args:
        features: (M, d). labels: (M,) class indices.
    Raises: ConfigError as `check_sets` says, or where there is not one label an image.
    """
    (features,) = check_sets("diversity", 1, features)
    if labels.shape != (len(features),):
        raise ConfigError(f"diversity takes one label an image; got {labels.shape} for {len(features)} images")
    found = np.full(len(features), np.nan)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) > 1:
            own = features[rows]
            sums = [block.sum(axis=1) for _, block in _blocks(own, own)]
            found[rows] = np.concatenate(sums) / (len(rows) - 1)
    return found


def class_diversity(features: np.ndarray, labels: np.ndarray) -> dict[int, float]:
    """Class → D_c, the mean distance over its pairs of images, 2/(M_c (M_c − 1)) Σ_{i<j} ‖g_i − g_j‖.

    A class with fewer than two images is left out. See `distances_within_class` for arguments and errors.
    """
    distances = distances_within_class(features, labels)
    known = ~np.isnan(distances)
    return {int(c): float(distances[labels == c].mean()) for c in np.unique(labels[known])}


def diversity_share(generated: dict[int, float], real: dict[int, float]) -> float | None:
    """Mean D_c of the generated images over that of the real ones, of the classes that both have; of `class_diversity`.

    None where they share no class, or the real images of the shared ones are all alike.
    """
    shared = generated.keys() & real.keys()
    whole = sum(real[c] for c in shared)
    return sum(generated[c] for c in shared) / whole if whole else None


# --- memorisation ---


def nearest_distances(images: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Distance (M,) of each image to the nearest training image; 0 exactly for a copy.

    Args:
        images: pixels (M, …). training: pixels (T, …) of the same shape; of any type, such as uint8.
    Raises: ConfigError when a side is empty or shapes differ.
    """
    from sklearn.metrics import pairwise_distances_argmin

    if not len(images) or not len(training) or images.shape[1:] != training.shape[1:]:
        raise ConfigError(
            f"nearest training images are looked for among images of the same shape; got {images.shape} and "
            f"{training.shape}"
        )
    x, y = (a.reshape(len(a), -1).astype(np.float32) for a in (images, training))
    nearest = pairwise_distances_argmin(x, y)  # by the expansion, which is fast; the distance itself is taken anew
    return np.linalg.norm(x.astype(np.float64) - y[nearest], axis=1)


def memorisation_ratio(generated: np.ndarray, real: np.ndarray) -> float:
    """How near generated images are to training images, in units of how near unseen real ones are: median over median.

    About 1 for new images, 0 where at least half are copies. A few copies among many do not move the median.
    ASSUMPTION: the spec asks for the two distributions; the ratio of their medians is our one figure of them.

    Args:
        generated, real: `nearest_distances` (M,) and (N,) to the same training images.
    Raises: ConfigError where the median of the real ones is 0: they are in the training split.
    """
    scale = float(np.median(real))
    if scale == 0.0:
        raise ConfigError("half of the real images are in the training split; name another split as the reference")
    return float(np.median(generated)) / scale
