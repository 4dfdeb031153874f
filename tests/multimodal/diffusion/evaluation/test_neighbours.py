"""Precision, recall, density, coverage, diversity and memorisation against loops over all pairs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from limbeck.errors import ConfigError
from limbeck.multimodal.diffusion.evaluation import neighbours
from limbeck.multimodal.diffusion.evaluation.neighbours import (
    class_diversity,
    density_coverage,
    distances_within_class,
    diversity_share,
    expected_coverage,
    memorisation_ratio,
    nearest_distances,
    precision_recall,
    radii,
)


def naive_radius(x: np.ndarray, i: int, k: int) -> float:
    return sorted(np.linalg.norm(x[i] - x[j]) for j in range(len(x)) if j != i)[k - 1]


def inside(point: np.ndarray, x: np.ndarray, i: int, k: int) -> bool:
    return bool(np.linalg.norm(point - x[i]) <= naive_radius(x, i, k))


@pytest.fixture(params=[1000, 4], ids=["one block", "many blocks"])
def sets(request, monkeypatch) -> tuple[np.ndarray, np.ndarray]:
    monkeypatch.setattr(neighbours, "BLOCK", request.param)
    rng = np.random.default_rng(0)
    return rng.normal(size=(13, 2)), rng.normal(size=(10, 2)) + 1.2


def test_radii_equal_a_loop(sets):
    for k in (1, 3, 12):
        np.testing.assert_allclose(radii(sets[0], k), [naive_radius(sets[0], i, k) for i in range(13)])


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_equal_a_loop(sets, k):
    real, generated = sets
    precision, recall = precision_recall(real, generated, k)
    np.testing.assert_array_equal(precision, [any(inside(g, real, i, k) for i in range(13)) for g in generated])
    np.testing.assert_array_equal(recall, [any(inside(r, generated, j, k) for j in range(10)) for r in real])
    assert 0 < precision.mean() < 1
    assert 0 < recall.mean() < 1


@pytest.mark.parametrize("k", [1, 5])
def test_density_and_coverage_equal_a_loop(sets, k):
    real, generated = sets
    density, coverage = density_coverage(real, generated, k)
    np.testing.assert_allclose(density, [sum(inside(g, real, i, k) for i in range(13)) / k for g in generated])
    np.testing.assert_array_equal(coverage, [any(inside(g, real, i, k) for g in generated) for i in range(13)])
    assert 0 < coverage.mean() < 1


def test_a_copy_of_the_real_set_has_ones():
    real = np.random.default_rng(0).normal(size=(200, 64))
    real[10:20] = real[10]  # balls of radius 0, whose border counts
    precision, recall = precision_recall(real, real.copy())
    _, coverage = density_coverage(real, real.copy())
    assert precision.min() == recall.min() == coverage.min() == 1


def test_one_repeated_image_covers_next_to_nothing():
    real = np.random.default_rng(0).normal(size=(300, 8))
    generated = np.tile(real[0], (300, 1))
    precision, recall = precision_recall(real, generated)
    density, coverage = density_coverage(real, generated)
    assert precision.mean() == 1
    assert recall.sum() == 1  # the image itself
    holding = sum(inside(real[0], real, i, 5) for i in range(300))
    assert coverage.sum() == holding < 30
    np.testing.assert_allclose(density, holding / 5)
    assert class_diversity(generated, np.zeros(300, dtype=int)) == {0: 0.0}


def test_images_far_away_have_zeros():
    rng = np.random.default_rng(0)
    real, generated = rng.normal(size=(50, 4)), rng.normal(size=(50, 4)) + 100
    assert not any(part.any() for part in (*precision_recall(real, generated), *density_coverage(real, generated)))


def test_equal_distributions_have_the_expected_coverage_and_density():
    rng = np.random.default_rng(1)
    found = [density_coverage(rng.normal(size=(1000, 4)), rng.normal(size=(1000, 4))) for _ in range(3)]
    assert np.mean([c for _, c in found]) == pytest.approx(0.969, abs=0.02)
    assert np.mean([d for d, _ in found]) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("n", "m"), [(60, 60), (60, 20), (30, 90)])
def test_expected_coverage_holds_whatever_the_distribution(n, m):
    rng = np.random.default_rng(2)
    found = [density_coverage(rng.gamma(0.5, size=(n, 3)), rng.gamma(0.5, size=(m, 3)))[1].mean() for _ in range(200)]
    assert np.mean(found) == pytest.approx(expected_coverage(n, m), abs=4 * np.std(found) / np.sqrt(200))


def test_an_outlier_lifts_precision_more_than_density():
    rng = np.random.default_rng(3)
    real, generated = rng.normal(size=(200, 4)), rng.normal(size=(200, 4)) + 8
    with_outlier = np.vstack([real, np.full(4, 16.0)])  # its ball reaches over all generated images
    assert precision_recall(real, generated)[0].mean() == 0
    assert precision_recall(with_outlier, generated)[0].mean() == 1
    assert density_coverage(with_outlier, generated)[0].mean() == pytest.approx(1 / 5)


@pytest.mark.parametrize(("figures", "k"), [(precision_recall, 3), (density_coverage, 5)])
def test_fewer_images_than_neighbours_are_refused(figures, k):
    many, few = np.random.default_rng(0).normal(size=(20, 2)), np.random.default_rng(1).normal(size=(k, 2))
    for real, generated in ((many, few), (few, many)):
        with pytest.raises(ConfigError, match=f"k={k} needs at least {k + 1} images in each set; got {k}"):
            figures(real, generated)
    with pytest.raises(ConfigError, match="not finite"):
        figures(many, np.full((20, 2), np.nan))
    with pytest.raises(ConfigError, match="counted from 1"):
        radii(many, 0)


# --- diversity ---


def test_diversity_is_the_mean_over_pairs_of_a_class(sets):
    features = sets[0]
    labels = np.array([0, 2, 0, 2, 0, 2, 0, 5, 0, 2, 0, 2, 0])  # one image of class 5, none of others
    found = class_diversity(features, labels)
    assert set(found) == {0, 2}
    for label, value in found.items():
        own = features[labels == label]
        pairs = [np.linalg.norm(a - b) for a, b in itertools.combinations(own, 2)]
        assert value == pytest.approx(np.mean(pairs))
    assert np.isnan(distances_within_class(features, labels)).sum() == 1
    with pytest.raises(ConfigError, match="one label an image"):
        class_diversity(features, labels[:5])


def test_share_is_over_the_classes_that_both_have():
    assert diversity_share({0: 1.0, 1: 2.0, 7: 50.0}, {0: 2.0, 1: 4.0, 3: 90.0}) == pytest.approx(0.5)
    assert diversity_share({0: 1.0}, {1: 1.0}) is None
    assert diversity_share({0: 1.0}, {0: 0.0}) is None
    rng = np.random.default_rng(0)
    real, labels = rng.normal(size=(40, 3)), np.arange(40) % 4
    shrunk = class_diversity(0.3 * real + 5, labels)
    assert diversity_share(shrunk, class_diversity(real, labels)) == pytest.approx(0.3)


# --- memorisation ---


def test_nearest_distances_equal_a_loop_and_are_zero_for_copies():
    rng = np.random.default_rng(0)
    training = rng.integers(256, size=(50, 1, 6, 6), dtype=np.uint8)
    images = rng.integers(256, size=(9, 1, 6, 6), dtype=np.uint8)
    images[4] = training[17]
    found = nearest_distances(images, training)
    loop = [min(np.linalg.norm(a.astype(float) - b.astype(float)) for b in training) for a in images]
    np.testing.assert_allclose(found, loop)
    assert found[4] == 0
    assert (np.delete(found, 4) > 0).all()


def test_memorisation_ratio_tells_copies_from_new_images():
    rng = np.random.default_rng(1)
    training, real, new = (rng.integers(256, size=(200, 16), dtype=np.uint8) for _ in range(3))
    unseen = nearest_distances(real, training)
    assert memorisation_ratio(nearest_distances(training[:100], training), unseen) == 0
    assert memorisation_ratio(nearest_distances(new, training), unseen) == pytest.approx(1, abs=0.05)
    assert memorisation_ratio(unseen, unseen) == 1
    near = np.clip(training.astype(int) + 1, 0, 255)
    assert 0 < memorisation_ratio(nearest_distances(near, training), unseen) < 0.1
    with pytest.raises(ConfigError, match="real images are in the training split"):
        memorisation_ratio(unseen, np.zeros(5))


def test_images_of_another_shape_or_none_have_no_nearest():
    training = np.zeros((5, 1, 4, 4), dtype=np.uint8)
    for images in (np.zeros((3, 1, 5, 5), dtype=np.uint8), training[:0]):
        with pytest.raises(ConfigError, match="same shape"):
            nearest_distances(images, training)
    with pytest.raises(ConfigError, match="same shape"):
        nearest_distances(training, training[:0])
