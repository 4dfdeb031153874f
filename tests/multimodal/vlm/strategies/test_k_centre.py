"""Greedy k-centre: its bound against the exact optimum, exact distances behind the product that only excludes."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.multimodal.vlm.strategies import _k_centre
from limbeck.multimodal.vlm.strategies._k_centre import Euclidean, Nearest, greedy_k_centre, squared_norms
from tests.multimodal.vlm.strategies.pools import grid_pool, random_pool

NONE = np.empty(0, np.int64)


def radius(table: np.ndarray, ids: np.ndarray, centres: np.ndarray) -> float:
    apart = table[ids].astype(np.float64)[:, None] - table[centres].astype(np.float64)[None]
    return float(np.sqrt((apart**2).sum(2)).min(1).max())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(0, 2), st.booleans())
def test_covering_radius_is_at_most_twice_the_optimum(seed: int, budget: int, labelled: int, grid: bool) -> None:
    made = grid_pool if grid else random_pool
    pool = made(seed, images=10 + labelled + (0 if grid else 4), classes=3, labelled=labelled)
    table, ids, start = pool.probabilities, pool.unlabelled, pool.labelled
    assert table is not None
    picks, _ = greedy_k_centre(Euclidean(table), ids, start, budget)
    best = min(radius(table, ids, np.concatenate([start, c]).astype(int)) for c in combinations(ids, budget))
    assert radius(table, ids, np.concatenate([start, picks])) <= 2 * best + 1e-6


@pytest.mark.parametrize("labelled", [0, 6])
def test_gaps_are_the_distances_at_each_pick_and_never_grow(labelled: int) -> None:
    pool = random_pool(0, labelled=labelled)
    table = pool.probabilities
    assert table is not None
    picks, gaps = greedy_k_centre(Euclidean(table), pool.unlabelled, pool.labelled, len(pool.unlabelled))
    assert (np.diff(gaps) <= 0).all()
    for index in range(0 if labelled else 1, len(picks)):
        before = np.concatenate([pool.labelled, picks[:index]])
        assert gaps[index] == pytest.approx(radius(table, picks[index : index + 1], before), rel=1e-5)
        assert gaps[index] == pytest.approx(radius(table, pool.unlabelled, before), rel=1e-5)


def test_an_orthogonal_map_changes_nothing() -> None:
    for seed in range(5):
        pool = random_pool(seed)
        assert pool.features is not None
        turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(5, 5)))
        turned = (pool.features.astype(np.float64) @ turn).astype(np.float32)
        found = [greedy_k_centre(Euclidean(t), pool.unlabelled, pool.labelled, 15)[0] for t in (pool.features, turned)]
        assert found[0].tolist() == found[1].tolist()


@pytest.mark.parametrize("spread", [1.0, 1e-2, 1e-4, 1e-7, 0.0])
def test_smallest_distance_is_that_of_differences_bit_for_bit(spread: float) -> None:
    """Where all points nearly coincide the matrix product alone has no correct digit."""
    rng = np.random.default_rng(0)
    centre = rng.dirichlet(np.full(50, 0.3))
    table = (centre + spread * rng.normal(size=(300, 50)) / 50).astype(np.float32)
    space, ids, centres = Euclidean(table), np.arange(200), np.arange(200, 300)
    ((_, block),) = space.rows(ids)
    found = space.squared(block, space.points(centres), np.inf)
    exact = np.stack([squared_norms(table[ids] - table[c]) for c in centres], axis=1)
    np.testing.assert_array_equal(found.min(1), exact.min(1))
    np.testing.assert_array_equal(found.argmin(1), exact.argmin(1))
    known = np.isfinite(found)
    np.testing.assert_array_equal(found[known], exact[known])
    if spread == 1.0:
        assert known.mean() < 0.1  # the product excludes nearly all


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_skipping_far_images_loses_no_nearer_centre(seed: int, groups: int) -> None:
    """Tight clusters, where the triangle inequality rules out most images."""
    rng = np.random.default_rng(seed)
    middle = rng.dirichlet(np.full(6, 0.2), groups)
    table = (middle[rng.integers(0, groups, 80)] + rng.normal(size=(80, 6)) * 0.01).astype(np.float32)
    ids = np.arange(80)
    near = Nearest(Euclidean(table), ids)
    compared = []
    for centre in rng.permutation(80)[:12]:
        reach = near._reachable(near.space.points(np.array([centre]))) if len(near.centres) else ids
        compared.append(len(reach))
        near.add(np.array([centre]))
    whole = np.stack([squared_norms(table - table[c]) for c in near.centres], axis=1)
    np.testing.assert_array_equal(near.squared, whole.min(1).astype(np.float64))
    np.testing.assert_array_equal(whole[ids, near.owner], whole.min(1))
    assert compared[-1] < 80


def test_many_centres_come_in_several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = random_pool(2)
    assert pool.probabilities is not None
    found = []
    for most in (1, 3, 100):
        monkeypatch.setattr(_k_centre, "CENTRES", most)
        near = Nearest(Euclidean(pool.probabilities), pool.unlabelled)
        near.add(pool.labelled)
        found.append((near.squared.tolist(), near.centres[near.owner].tolist()))
    assert found[0] == found[1] == found[2]


def test_without_centres_the_lowest_id_is_first() -> None:
    table = np.random.default_rng(0).dirichlet(np.ones(3), 9).astype(np.float32)
    picks, gaps = greedy_k_centre(Euclidean(table), np.array([2, 5, 7, 8]), NONE, 2)
    assert picks[0] == 2
    assert np.isinf(gaps[0])
