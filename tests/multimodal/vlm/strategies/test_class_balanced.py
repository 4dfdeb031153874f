"""ClassBalanced: exact quotas, uniform draws inside a class, and the fill where a class is short."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from limbeck.engine.selection import Pool
from limbeck.errors import ConfigError
from limbeck.multimodal.vlm.strategies.class_balanced import ClassBalanced, class_quotas


def made(predicted: list[int], counts: list[int]) -> Pool:
    """Unlabelled images with these predicted classes, after counts[c] labelled images of class c."""
    labels = np.repeat(np.arange(len(counts)), counts)
    table = np.full((len(labels) + len(predicted), len(counts)), 0.1, np.float32)
    table[np.arange(len(table)), [*labels, *predicted]] = 0.5
    table /= table.sum(1, keepdims=True)
    ids = np.arange(len(table))
    return Pool(probabilities=table, labelled=ids[: len(labels)], labels=labels, unlabelled=ids[len(labels) :])


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(1, 300))
def test_quotas_sum_to_the_budget_and_are_within_one_of_their_share(counts: list[int], budget: int) -> None:
    found = class_quotas(np.array(counts), budget)
    weights = 1 / (np.array(counts) + 1.0)
    assert found.sum() == budget
    assert (np.abs(found - budget * weights / weights.sum()) < 1 + 1e-9).all()
    assert all(a >= b for a, x in zip(found, counts) for b, y in zip(found, counts) if x < y)


def test_quotas_by_hand() -> None:
    assert class_quotas(np.array([0, 1, 3]), 7).tolist() == [4, 2, 1]  # 7 · (4, 2, 1) / 7
    assert class_quotas(np.array([3, 0, 1]), 9).tolist() == [1, 6, 2]  # 9/7, 36/7, 18/7; one over: the largest weight
    assert class_quotas(np.array([1] * 49), 49).tolist() == [1] * 49  # 49 · (1 / 49) is below 1 in float64


def test_each_predicted_class_gives_its_quota_and_each_image_is_as_likely() -> None:
    predicted = [0] * 8 + [1] * 8 + [3] * 8  # class 2 is not predicted: it has no quota
    pool = made(predicted, [0, 1, 0, 3])
    of = dict(zip(pool.unlabelled.tolist(), predicted, strict=True))
    times: dict[int, int] = dict.fromkeys(of, 0)
    for seed in range(400):
        ids = ClassBalanced().choose(pool, 7, seed=seed).tolist()
        assert [of[i] for i in ids] == [0] * 4 + [1] * 2 + [3]  # falling weight
        for i in ids:
            times[i] += 1
    for kind in (0, 1, 3):
        counts = [n for i, n in times.items() if of[i] == kind]
        assert sum(counts) == 400 * {0: 4, 1: 2, 3: 1}[kind]
        assert stats.chisquare(counts).pvalue > 0.01


def test_a_class_that_is_short_gives_all_and_the_rest_is_filled_at_random() -> None:
    pool = made([0, 0] + [1] * 12, [0, 5])
    fills: dict[int, int] = dict.fromkeys(pool.unlabelled[2:].tolist(), 0)
    for seed in range(300):
        ids = ClassBalanced().choose(pool, 7, seed=seed).tolist()  # quotas 6 and 1
        assert set(ids[:2]) == set(pool.unlabelled[:2].tolist())
        assert len(set(ids)) == 7
        for i in ids[2:]:
            fills[i] += 1
    assert stats.chisquare(list(fills.values())).pvalue > 0.01


def test_variant_of_the_code_counts_a_class_without_labels_as_one() -> None:
    pool = made([0] * 9 + [1] * 9, [0, 1])
    of = [
        (ClassBalanced(variant=v).choose(pool, 6, seed=0) < pool.unlabelled[9]).sum() for v in ("balanced", "activekd")
    ]
    assert of == [4, 3]


def test_unknown_variant_is_refused() -> None:
    with pytest.raises(ConfigError, match="variant 'paper' is none of balanced, activekd"):
        ClassBalanced(variant="paper")
