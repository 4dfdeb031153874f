"""Random, entropy, margin and least confidence against their definitions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from limbeck.engine.registry import STRATEGIES
from limbeck.engine.selection import Pool
from tests.multimodal.vlm.strategies.pools import grid_pool, random_pool

SCORES: dict[str, Callable[[list[float]], float]] = {
    "Entropy": lambda p: sum(x * math.log(x + 1e-10) for x in p),
    "Margin": lambda p: sorted(p)[-1] - sorted(p)[-2],
    "LeastConfidence": max,
}


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("seed", range(4))
def test_smallest_scores_first(name: str, seed: int) -> None:
    pool = random_pool(seed)
    assert pool.probabilities is not None
    score = SCORES[name]
    expected = sorted(pool.unlabelled.tolist(), key=lambda i: score(pool.probabilities[i].tolist()))  # type: ignore[index]
    assert STRATEGIES.make(dict(type=name)).choose(pool, 20, seed=0).tolist() == expected[:20]


@pytest.mark.parametrize("name", ["Margin", "LeastConfidence"])
def test_ties_go_to_the_lowest_id(name: str) -> None:
    pool = grid_pool(0)
    assert pool.probabilities is not None
    score = SCORES[name]
    expected = sorted(pool.unlabelled.tolist(), key=lambda i: (score(pool.probabilities[i].tolist()), i))  # type: ignore[index]
    assert STRATEGIES.make(dict(type=name)).choose(pool, 35, seed=0).tolist() == expected


def test_equal_rows_tie_in_entropy_wherever_they_stand() -> None:
    row = np.random.default_rng(0).dirichlet(np.ones(37)).astype(np.float32)
    pool = Pool(probabilities=np.tile(row, (50, 1)), labelled=[], labels=[], unlabelled=range(50))  # type: ignore[arg-type]
    assert STRATEGIES.make(dict(type="Entropy")).choose(pool, 50, seed=0).tolist() == list(range(50))


def test_random_draws_every_image_as_often_and_needs_no_predictions() -> None:
    pool = Pool(labelled=[3], labels=[0], unlabelled=[0, 1, 2, 4, 5, 6])  # type: ignore[arg-type]
    draws = [STRATEGIES.make(dict(type="Random")).choose(pool, 2, seed=seed).tolist() for seed in range(600)]
    counts = [sum(i in pair for pair in draws) for i in pool.unlabelled.tolist()]
    firsts = [sum(pair[0] == i for pair in draws) for i in pool.unlabelled.tolist()]
    assert sum(counts) == 1200
    assert stats.chisquare(counts).pvalue > 0.01
    assert stats.chisquare(firsts).pvalue > 0.01
