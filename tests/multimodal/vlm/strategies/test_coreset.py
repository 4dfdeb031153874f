"""Coreset against greedy k-centre by 1 − cosine, from its definition."""

from __future__ import annotations

import numpy as np
import pytest

from limbeck.engine.selection import Pool
from limbeck.multimodal.vlm.strategies.coreset import Coreset, unit
from tests.multimodal.vlm.strategies.pools import greedy, random_pool


def one_minus_cosine(a: np.ndarray, b: np.ndarray) -> float:
    return 1 - float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("seed", range(6))
def test_equals_greedy_by_one_minus_cosine(seed: int) -> None:
    pool = random_pool(seed, images=40, labelled=4)
    assert pool.features is not None
    expected = greedy(pool.features, pool, 12, one_minus_cosine)
    assert Coreset().choose(pool, 12, seed=0).tolist() == expected


def test_length_of_a_feature_does_not_count() -> None:
    pool = random_pool(1)
    assert pool.features is not None
    scaled = pool.features * np.random.default_rng(0).uniform(0.1, 9, (pool.images, 1)).astype(np.float32)
    ids = dict(labelled=pool.labelled, labels=pool.labels, unlabelled=pool.unlabelled)
    found = [Coreset().choose(Pool(features=table, **ids), 12, seed=0) for table in (pool.features, scaled)]
    np.testing.assert_array_equal(found[0], found[1])


def test_a_feature_of_zeros_stays_zero() -> None:
    rows = unit(np.array([[3.0, 4.0], [0.0, 0.0]], np.float32))
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0]], rtol=1e-6)
