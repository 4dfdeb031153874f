"""BADGE against explicit gradient embeddings: distances, k-means++ with the same random numbers, the variant."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from limbeck.engine.selection import Pool
from limbeck.errors import ConfigError
from limbeck.multimodal.vlm.strategies.badge import BADGE, Gradients
from tests.multimodal.vlm.strategies.pools import greedy, random_pool


def embeddings(pool: Pool) -> np.ndarray:
    """(N, K · d) by autograd: gradient of the cross entropy with the predicted class in the last layer's weights."""
    assert pool.probabilities is not None
    assert pool.features is not None
    rows = []
    for p, f in zip(pool.probabilities.astype(np.float64), pool.features.astype(np.float64), strict=True):
        weights = torch.zeros(len(p), len(f), dtype=torch.float64, requires_grad=True)
        logits = torch.from_numpy(np.log(p)) + weights @ torch.from_numpy(f)
        loss = torch.nn.functional.cross_entropy(logits[None], logits.argmax()[None])
        rows.append(torch.autograd.grad(loss, weights)[0].numpy().ravel())
    return np.stack(rows)


def seeding(g: np.ndarray, budget: int, seed: int, first: str) -> list[int]:
    """k-means++ from its definition on all of g, with the numbers that `choose` draws."""
    rng = np.random.default_rng(seed)
    chosen = [int(rng.integers(len(g))) if first == "uniform" else int(np.linalg.norm(g, axis=1).argmax())]
    while len(chosen) < budget:
        weights = np.min([((g - g[c]) ** 2).sum(1) for c in chosen], axis=0)
        target, total = rng.random() * weights.sum(), 0.0
        for place, weight in enumerate(weights):
            total += weight
            if total > target:
                chosen.append(place)
                break
    return chosen


def test_implicit_distances_equal_explicit_ones() -> None:
    pool = random_pool(0, unused=0)
    assert pool.probabilities is not None
    assert pool.features is not None
    g, ids = embeddings(pool), np.arange(pool.images)
    for unit in (False, True):
        space = Gradients(pool.probabilities, pool.features, unit=unit)
        found = np.concatenate([space.squared(b, space.points(ids), np.inf) for _, b in space.rows(ids)])
        h = g / np.linalg.norm(g, axis=1, keepdims=True) if unit else g
        expected = ((h[:, None] - h[None]) ** 2).sum(2)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        assert (np.diag(found) == 0).all()


@pytest.mark.parametrize("first", ["largest", "uniform"])
@pytest.mark.parametrize("seed", range(8))
def test_equals_k_means_plus_plus_on_explicit_embeddings(seed: int, first: str) -> None:
    pool = random_pool(seed)
    expected = pool.unlabelled[seeding(embeddings(pool)[pool.unlabelled], 15, seed, first)]
    assert BADGE(first=first).choose(pool, 15, seed=seed).tolist() == expected.tolist()


@pytest.mark.parametrize("seed", range(4))
def test_variant_of_the_code_is_farthest_first_by_cosine_and_ignores_labelled_images(seed: int) -> None:
    pool = random_pool(seed, images=40)
    g = embeddings(pool)
    h = g / np.linalg.norm(g, axis=1, keepdims=True)
    expected = greedy(h, pool, 12, lambda a, b: 1 - float(a @ b), centres=[])
    assert BADGE(variant="activekd").choose(pool, 12, seed=0).tolist() == expected


def test_second_choice_is_drawn_by_squared_distance() -> None:
    pool = random_pool(4, images=14, labelled=2, unused=2)
    g = embeddings(pool)[pool.unlabelled]
    first = int(np.linalg.norm(g, axis=1).argmax())
    share = ((g - g[first]) ** 2).sum(1)
    share /= share.sum()
    draws = [int(BADGE().choose(pool, 2, seed=seed)[1]) for seed in range(1500)]
    counts = np.array([draws.count(int(i)) for i in pool.unlabelled])
    assert counts[first] == 0
    rest = np.arange(len(share)) != first
    assert stats.chisquare(counts[rest], 1500 * share[rest]).pvalue > 0.01


def test_confident_images_have_no_gradient_and_come_last_in_random_order() -> None:
    """One-hot predictions: g = 0, so after all others are chosen the rest have equal chances."""
    table = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2]]
    table[[1, 4]] = [[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]]
    features = np.random.default_rng(0).random((6, 4)).astype(np.float32) + 0.1
    pool = Pool(probabilities=table, features=features, labelled=[], labels=[], unlabelled=range(6))  # type: ignore[arg-type]
    found = [BADGE().choose(pool, 6, seed=seed).tolist() for seed in range(30)]
    zeros = {0, 2, 3, 5}
    for ids in found:
        assert sum(i in zeros for i in ids[:3]) <= 1  # 0 is one point: its second copy has weight 0
        assert sorted(ids) == list(range(6))
    assert {ids[-1] for ids in found} == zeros


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="variant 'code' is none of published, activekd"):
        BADGE(variant="code")
    with pytest.raises(ConfigError, match="first 'any' is none of largest, uniform"):
        BADGE(first="any")
