"""Fréchet and kernel distances against scipy, torchmetrics and known answers; their bias; bootstrap widths."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from limbeck.errors import ConfigError
from limbeck.multimodal.diffusion.evaluation import statistics
from limbeck.multimodal.diffusion.evaluation.statistics import (
    bootstrap,
    frechet_bias,
    frechet_distance,
    frechet_of_moments,
    interval,
    kernel_distance,
    label_agreement,
    label_entropy,
    moments,
)


def gaussian(rng: np.random.Generator, d: int) -> tuple[np.ndarray, np.ndarray]:
    root = rng.normal(size=(d, d))
    return rng.normal(size=d), root @ root.T / d + 0.1 * np.eye(d)


# --- Fréchet distance ---


@pytest.mark.parametrize("seed", range(5))
def test_frechet_of_random_gaussians_equals_scipy_and_torchmetrics(seed):
    rng = np.random.default_rng(seed)
    (m1, c1), (m2, c2) = gaussian(rng, 12), gaussian(rng, 12)
    by_scipy = (m1 - m2) @ (m1 - m2) + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
    by_torchmetrics = _compute_fid(*(torch.from_numpy(x) for x in (m1, c1, m2, c2))).item()
    found = frechet_of_moments(m1, c1, m2, c2)
    assert found == pytest.approx(by_scipy, rel=1e-9)
    assert found == pytest.approx(by_torchmetrics, rel=1e-9)


def test_frechet_of_gaussians_with_known_answer():
    rng = np.random.default_rng(0)
    a, eye = rng.normal(size=64), np.eye(64)
    assert frechet_of_moments(np.zeros(64), eye, a, eye) == pytest.approx(a @ a)
    assert frechet_of_moments(a, eye, a, 9.0 * eye) == pytest.approx(64 * (3 - 1) ** 2)
    # Covariances with common eigenvectors: the roots of the eigenvalues differ.
    rotation = np.linalg.qr(rng.normal(size=(64, 64)))[0]
    l1, l2 = rng.uniform(0, 4, size=(2, 64))
    c1, c2 = ((rotation * values) @ rotation.T for values in (l1, l2))
    assert frechet_of_moments(a, c1, a, c2) == pytest.approx(((np.sqrt(l1) - np.sqrt(l2)) ** 2).sum())
    # In one dimension it is the distance of Gaussians (μ, σ) as points.
    assert frechet_of_moments(np.array([1.0]), np.array([[4.0]]), np.array([4.0]), np.array([[25.0]])) == pytest.approx(
        9 + 9
    )


def test_frechet_of_large_samples_comes_near_the_known_answer():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20000, 4)), 2.0 * rng.normal(size=(20000, 4)) + 1.0
    assert frechet_distance(x, y) == pytest.approx(4 * 1 + 4 * 1, rel=0.03)


@pytest.mark.parametrize("n", [20, 500])  # 20 < d: the covariance is singular
def test_frechet_of_a_set_to_itself_is_zero(n):
    x = np.random.default_rng(0).normal(size=(n, 64)) * np.geomspace(1, 1e-3, 64)
    assert abs(frechet_distance(x, x)) < 1e-8
    assert abs(frechet_distance(x, x[::-1])) < 1e-8


def test_frechet_is_symmetric_and_ignores_rotation_and_order():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(300, 16)), rng.gamma(2.0, size=(200, 16))
    rotation = np.linalg.qr(rng.normal(size=(16, 16)))[0]
    found = frechet_distance(x, y)
    assert found > 1
    assert frechet_distance(y, x) == pytest.approx(found, rel=1e-10)
    assert frechet_distance(x @ rotation, y @ rotation) == pytest.approx(found, rel=1e-10)
    assert frechet_distance(rng.permutation(x), y) == pytest.approx(found, rel=1e-10)
    assert frechet_distance(x + 7, y + 7) == pytest.approx(found, rel=1e-10)


def test_one_repeated_image_has_the_distance_to_a_point():
    x = np.random.default_rng(2).normal(size=(400, 8))
    point = np.tile(x[0], (50, 1))
    expected = ((x[0] - x.mean(0)) ** 2).sum() + x.var(0, ddof=1).sum()
    assert frechet_distance(x, point) == pytest.approx(expected)


@pytest.mark.parametrize("spectrum", ["identity", "decaying"])
def test_bias_formula_holds_within_a_tenth(spectrum):
    rng = np.random.default_rng(3)
    scale = np.ones(64) if spectrum == "identity" else np.geomspace(3, 0.05, 64)
    runs = [
        frechet_distance(rng.normal(size=(2000, 64)) * scale, rng.normal(size=(2000, 64)) * scale) for _ in range(20)
    ]
    expected = frechet_bias(np.diag(scale**2), 2000, 2000)
    assert np.mean(runs) == pytest.approx(expected, rel=0.1)
    if spectrum == "identity":
        assert expected == pytest.approx((1 / 2000 + 1 / 2000) * (64 + 64 * 65 / 4))


def test_bias_ignores_directions_without_variance():
    cov = np.diag([2.0, 1.0])
    padded = np.zeros((5, 5))
    padded[:2, :2] = cov
    assert frechet_bias(padded, 100, 50) == pytest.approx(frechet_bias(cov, 100, 50))
    by_hand = (1 / 100 + 1 / 50) * (3 + 0.5 * (2 * 4 / 4 + 2 * 1 / 2 + 2 * (2 / 3)))
    assert frechet_bias(cov, 100, 50) == pytest.approx(by_hand)


# --- kernel distance ---


def naive_mmd(x: np.ndarray, y: np.ndarray) -> float:
    def k(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a @ b) / len(a) + 1) ** 3

    within = [np.mean([k(s[i], s[j]) for i, j in itertools.permutations(range(len(s)), 2)]) for s in (x, y)]
    return float(within[0] + within[1] - 2 * np.mean([k(a, b) for a in x for b in y]))


def test_kernel_distance_equals_a_naive_loop_and_torchmetrics(monkeypatch):
    monkeypatch.setattr(statistics, "BLOCK", 4)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(11, 3)), rng.normal(size=(7, 3)) + 0.5
    assert kernel_distance(x, y) == pytest.approx(naive_mmd(x, y))
    x, y = rng.normal(size=(30, 16)), rng.normal(size=(30, 16)) * 2  # torchmetrics wants N = M
    assert kernel_distance(x, y) == pytest.approx(poly_mmd(torch.from_numpy(x), torch.from_numpy(y)).item())


def test_kernel_distance_of_one_distribution_is_zero_on_average_and_often_negative():
    rng = np.random.default_rng(1)
    runs = np.array([kernel_distance(rng.normal(size=(40, 8)), rng.normal(size=(25, 8))) for _ in range(400)])
    assert abs(runs.mean()) < 2 * runs.std(ddof=1) / math.sqrt(len(runs))
    assert 0.2 < (runs < 0).mean() < 0.8


def test_kernel_distance_has_the_known_mean_of_shifted_gaussians():
    """In one dimension k = 1 + 3xy + 3x²y² + x³y³: the squared differences of the first three moments, weighted."""
    rng = np.random.default_rng(2)
    runs = [kernel_distance(rng.normal(size=(60, 1)), rng.normal(size=(80, 1)) + 0.5) for _ in range(2000)]
    first, second, third = 0.5, 1.25 - 1.0, 0.5**3 + 3 * 0.5
    expected = 3 * first**2 + 3 * second**2 + third**2
    assert abs(np.mean(runs) - expected) < 3 * np.std(runs) / math.sqrt(len(runs))


# --- what is refused ---


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_sets_that_do_not_fit_are_refused(distance):
    x = np.ones((5, 3))
    with pytest.raises(ConfigError, match=r"of the same d; got \(5, 3\) and \(5, 2\)"):
        distance(x, np.ones((5, 2)))
    with pytest.raises(ConfigError, match=r"features \(images, d\)"):
        distance(x, np.ones(5))
    with pytest.raises(ConfigError, match="at least 2 images in each set; got 1"):
        distance(x, x[:1])
    bad = x.copy()
    bad[3, 1] = np.nan
    with pytest.raises(ConfigError, match="features of image 3 are not finite"):
        distance(x, bad)
    bad[3, 1] = np.inf
    with pytest.raises(ConfigError, match="not finite"):
        distance(bad, x)


# --- labels ---


def test_label_agreement_of_each_class():
    labels = np.array([0, 0, 0, 1, 3, 3])
    predicted = np.array([0, 0, 1, 1, 2, 2])
    assert label_agreement(predicted, labels, 4) == pytest.approx([200 / 3, 100, 0, 0])


def test_label_entropy_is_largest_for_equal_classes_and_zero_for_one():
    assert label_entropy(np.arange(10).repeat(3), 10) == pytest.approx(math.log(10))
    assert label_entropy(np.zeros(5, dtype=int), 10) == 0
    assert label_entropy(np.array([0, 0, 0, 1]), 2) == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    with pytest.raises(ConfigError, match="at least one image"):
        label_entropy(np.array([], dtype=int), 10)


# --- sampling error ---


def test_bootstrap_of_a_share_has_the_binomial_deviation():
    hits = (np.random.default_rng(0).random(400) < 0.3).astype(float)
    found = bootstrap(np.mean, hits, resamples=4000)
    assert found.std() == pytest.approx(math.sqrt(hits.mean() * (1 - hits.mean()) / 400), rel=0.05)
    low, high = interval(hits.mean(), found)
    assert high - low == pytest.approx(2 * 1.96 * found.std(), rel=0.05)


def test_bootstrap_repeats_and_methods_share_the_resamples_of_the_reference():
    rng = np.random.default_rng(0)
    real, a, b = rng.normal(size=(50, 2)), rng.normal(size=(30, 2)), rng.normal(size=(40, 2))
    seen: dict[str, list[bytes]] = {}

    def note(name: str):
        def statistic(r: np.ndarray, g: np.ndarray) -> float:
            seen.setdefault(name, []).append(r.tobytes())
            return float(r.mean() - g.mean())

        return statistic

    first = bootstrap(note("a"), real, a, resamples=20)
    bootstrap(note("b"), real, b, resamples=20)
    assert seen["a"] == seen["b"]
    assert len(set(seen["a"])) == 20
    np.testing.assert_array_equal(first, bootstrap(note("again"), real, a, resamples=20))
    assert not np.array_equal(first, bootstrap(note("other"), real, a, resamples=20, seed=1))


def test_interval_takes_the_width_alone():
    resampled = np.random.default_rng(0).gamma(2.0, size=500)
    low, high = interval(5.0, resampled)
    assert interval(5.0, resampled + 100.0) == pytest.approx((low, high))
    assert interval(6.0, resampled) == pytest.approx((low + 1, high + 1))
    assert low < 5.0 < high


def test_width_of_the_frechet_interval_is_the_spread_of_new_samples():
    """Far from the floor, where the distance is nearly linear in the moments."""
    rng = np.random.default_rng(4)

    def sets() -> tuple[np.ndarray, np.ndarray]:
        return rng.normal(size=(500, 6)), 1.5 * rng.normal(size=(500, 6)) + 1.0

    spread = np.std([frechet_distance(*sets()) for _ in range(300)])
    x, y = sets()
    low, high = interval(frechet_distance(x, y), bootstrap(frechet_distance, x, y))
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.25)
    assert low < 6 * (1 + 0.25) < high


def test_moments_are_unbiased():
    x = np.random.default_rng(0).normal(size=(9, 3))
    mean, cov = moments(x)
    np.testing.assert_allclose(mean, x.sum(0) / 9)
    np.testing.assert_allclose(cov, (x - mean).T @ (x - mean) / 8)
    assert moments(x[:, :1])[1].shape == (1, 1)
