"""All figures of one set of generated images against one of real images, and how wide their sampling error is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from limbeck.multimodal.diffusion.evaluation import neighbours, statistics

NEIGHBOUR_IMAGES = 5000  # on either side, at most: pairs grow with the square
BALLS_K, DENSITY_K = 3, 5  # of precision and recall, of density and coverage
_DRAW_SEED = 0


@dataclass(frozen=True, eq=False)
class Sample:
    """Images as the metrics see them.

    features: (N, d) float64. labels: (N,), the classes that were asked for, or that the data set gives. predicted:
    (N,), the judge's.
    """

    features: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> Sample:
        """Some of the images."""
        return Sample(self.features[rows], self.labels[rows], self.predicted[rows])


@dataclass(frozen=True, eq=False)
class Measured:
    """Figures by name; `images` has, of some of them, one number an image whose mean moves as the figure does."""

    values: dict[str, float]
    images: dict[str, np.ndarray]


def drawn(count: int, most: int) -> np.ndarray:
    """Sorted rows of at most `most` of `count` images, with a fixed seed: splits may be ordered by class."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(_DRAW_SEED).permutation(count)[:most])


def halves(sample: Sample, images: int) -> tuple[Sample, Sample]:
    """Two disjoint parts: `images` of them, at most half, and all others; drawn with a fixed seed."""
    order = np.random.default_rng(_DRAW_SEED).permutation(len(sample))
    first = min(images, len(sample) // 2)
    return sample.take(np.sort(order[:first])), sample.take(np.sort(order[first:]))


def measure(net: str, classes: int, real: Sample, generated: Sample) -> Measured:
    """Every figure of two samples.

    Args:
        net: name of the feature net, which is part of some names.
        classes: K, of labels and the judge.
    Returns: `FD-<net>`, `FD-<net>_bias` (of equal distributions at these sizes); `MMD2-<net>` × 1,000; `precision`,
        `recall` (k = 3), `density`, `coverage` (k = 5); `diversity` D in feature space, and `diversity_share`, D over
        the real images', where a class has two images; `label_agreement` in percent; `label_entropy` in nats.
        MMD², precision, recall, density and coverage take equally many images on both sides, at most 5,000.
    Raises: ConfigError for fewer than six images on a side.
    """
    size = min(len(real), len(generated), NEIGHBOUR_IMAGES)
    r, g = (s.features[drawn(len(s), size)] for s in (real, generated))
    precision, recall = neighbours.precision_recall(r, g, BALLS_K)
    density, coverage = neighbours.density_coverage(r, g, DENSITY_K)
    images = dict(precision=precision, recall=recall, density=density, coverage=coverage)
    covariance = statistics.moments(real.features)[1]
    values = {
        f"FD-{net}": statistics.frechet_distance(real.features, generated.features),
        f"FD-{net}_bias": statistics.frechet_bias(covariance, len(real), len(generated)),
        f"MMD2-{net}": 1000.0 * statistics.kernel_distance(r, g),
        **{name: float(per_image.mean()) for name, per_image in images.items()},
    }
    found = neighbours.class_diversity(generated.features, generated.labels)
    if found:
        values["diversity"] = sum(found.values()) / len(found)
        images["diversity"] = _diversity_by_image(generated)
        share = neighbours.diversity_share(found, neighbours.class_diversity(real.features, real.labels))
        if share is not None:
            values["diversity_share"] = share
    images["label_agreement"] = 100.0 * (generated.predicted == generated.labels)
    values["label_agreement"] = float(images["label_agreement"].mean())
    values["label_entropy"] = statistics.label_entropy(generated.predicted, classes)
    return Measured(values, images)


def _diversity_by_image(sample: Sample) -> np.ndarray:
    """Numbers (M,) whose mean moves as D does when images are drawn anew, to the first order.

    Each image is in two of the arguments of a mean over pairs, so it counts twice; classes count equally.
    """
    distances = neighbours.distances_within_class(sample.features, sample.labels)
    known = ~np.isnan(distances)
    _, inverse, counts = np.unique(sample.labels[known], return_inverse=True, return_counts=True)
    return 2.0 * distances[known] * known.sum() / (len(counts) * counts[inverse])


def intervals(
    net: str, real: Sample, generated: Sample, measured: Measured, *, resamples: int = statistics.RESAMPLES
) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals over images, of the Fréchet distance and of each figure that is a mean over images.

    The radii of neighbours stay those of all images: an image that is drawn twice would be its own neighbour. That
    leaves out a part of the error of precision, recall, density and coverage. Near its floor the interval of the
    Fréchet distance is too wide, as a resample adds to it what it adds to the distance. What another seed of training
    would change is in none of these intervals.
    """
    name = f"FD-{net}"
    again = partial(statistics.bootstrap, resamples=resamples)
    spread = {name: again(statistics.frechet_distance, real.features, generated.features)}
    spread |= {figure: again(np.mean, per_image) for figure, per_image in measured.images.items()}
    return {figure: statistics.interval(measured.values[figure], found) for figure, found in spread.items()}
