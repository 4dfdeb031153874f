"""Coverage of classes, covering radius, overlap and area under the curve, each from its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import ConfigError
from limbeck.multimodal.vlm.coverage import ClassCoverage, area_under_curve, class_coverage, covering_radius, overlap
from limbeck.multimodal.vlm.strategies.pcoreset import PCoreSet
from tests.multimodal.vlm.strategies.pools import random_pool


def test_class_coverage_by_hand() -> None:
    found = class_coverage(np.array([2, 2, 2, 0]), 5)
    assert (found.classes, found.covered, found.imbalance) == (5, 2, 3.0)
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(5)
    assert found.entropy == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.integers(0, 4), max_size=30))
def test_class_coverage_has_its_bounds(labels: list[int]) -> None:
    found = class_coverage(np.array(labels, dtype=np.int64), 5)
    assert found.covered == len(set(labels))
    if not labels:
        assert found == ClassCoverage(5, 0, None, None)
        return
    assert found.imbalance is not None
    assert found.entropy is not None
    assert found.imbalance >= 1
    assert -1e-12 <= found.entropy <= 1
    balanced = len({labels.count(c) for c in range(5)}) == 1
    assert (found.entropy == pytest.approx(1, abs=1e-12)) == balanced


def test_labels_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="in 0 to 2 of two classes or more"):
        class_coverage(np.array([3]), 3)
    with pytest.raises(ConfigError, match="two classes"):
        class_coverage(np.array([0]), 1)


def test_covering_radius_is_the_largest_distance_to_the_nearest_centre() -> None:
    pool = random_pool(0)
    assert pool.probabilities is not None
    rows = pool.probabilities.astype(np.float64)
    apart = np.sqrt(((rows[pool.unlabelled][:, None] - rows[pool.labelled][None]) ** 2).sum(2))
    found = covering_radius(pool.probabilities, pool.unlabelled[::-1], pool.labelled[::-1])
    assert found == pytest.approx(apart.min(1).max(), rel=1e-5)


def test_covering_radius_falls_as_pcoreset_chooses_and_ends_at_zero() -> None:
    pool = random_pool(1)
    assert pool.probabilities is not None
    picks = PCoreSet().choose(pool, len(pool.unlabelled), seed=0)
    radii = [
        covering_radius(pool.probabilities, pool.unlabelled, np.concatenate([pool.labelled, picks[:n]]))
        for n in range(0, len(picks) + 1, 6)
    ]
    assert (np.diff(radii) <= 0).all()
    assert radii[-1] == 0
    assert covering_radius(np.eye(2, dtype=np.float16), np.array([0, 1]), np.array([0])) == pytest.approx(math.sqrt(2))


def test_covering_radius_without_labelled_images_is_an_error_and_without_others_zero() -> None:
    with pytest.raises(ConfigError, match="no labelled image to measure from"):
        covering_radius(np.eye(2, dtype=np.float32), np.array([0]), np.array([], dtype=int))
    assert covering_radius(np.eye(2, dtype=np.float32), np.array([], dtype=int), np.array([0])) == 0


def test_overlap_is_the_jaccard_index() -> None:
    assert overlap(np.array([1, 2, 3]), np.array([3, 4])) == 1 / 4
    assert overlap(np.array([1, 2]), np.array([2, 1])) == 1
    assert overlap(np.array([1]), np.array([2])) == 0
    assert overlap(np.array([], dtype=int), np.array([], dtype=int)) == 1


def test_area_under_curve_by_hand() -> None:
    assert area_under_curve([10, 20, 40], [0.5, 0.7, 0.6]) == pytest.approx((10 * 0.6 + 20 * 0.65) / 30)


@given(st.lists(st.floats(0, 100), min_size=2, max_size=8), st.floats(0.1, 50), st.floats(0, 100))
def test_area_under_curve_is_a_mean_accuracy(accuracy: list[float], step: float, start: float) -> None:
    labels = [start + step * i for i in range(len(accuracy))]
    found = area_under_curve(labels, accuracy)
    assert min(accuracy) - 1e-6 <= found <= max(accuracy) + 1e-6
    assert area_under_curve([3 * x + 1 for x in labels], accuracy) == pytest.approx(found, abs=1e-6)
    middle = [(labels[0] + labels[1]) / 2, (accuracy[0] + accuracy[1]) / 2]
    finer = area_under_curve([labels[0], middle[0], *labels[1:]], [accuracy[0], middle[1], *accuracy[1:]])
    assert finer == pytest.approx(found, abs=1e-6)  # a point on the curve changes nothing


@pytest.mark.parametrize(
    ("labels", "accuracy", "said"),
    [
        ([10], [0.5], "two rounds or more"),
        ([10, 20], [0.5], "two rounds or more"),
        ([10, 10], [0.5, 0.6], "labels have to increase"),
        ([20, 10], [0.5, 0.6], "labels have to increase"),
        ([10, 20], [0.5, math.nan], "finite"),
    ],
)
def test_area_under_curve_refuses(labels: list[float], accuracy: list[float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        area_under_curve(labels, accuracy)
