"""PCoreSet against greedy k-centre from its definition, ties included; what it does on one-hot predictions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.engine.selection import Pool
from limbeck.errors import ConfigError
from limbeck.multimodal.vlm.strategies.pcoreset import PCoreSet
from tests.multimodal.vlm.strategies.pools import greedy, grid_pool, random_pool, squared_l2


def js(a: np.ndarray, b: np.ndarray) -> float:
    middle = (a + b) / 2
    return sum(float(x * np.log(x / m)) / 2 for p in (a, b) for x, m in zip(p, middle, strict=True) if x > 0)


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "l2": squared_l2,
    "l1": lambda a, b: float(np.abs(a - b).sum()),
    "hellinger": lambda a, b: float(((np.sqrt(a) - np.sqrt(b)) ** 2).sum()),
    "js": js,
}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 6), st.integers(2, 5), st.integers(1, 20))
def test_equals_greedy_from_its_definition_with_ties(seed: int, labelled: int, classes: int, budget: int) -> None:
    pool = grid_pool(seed, images=30, classes=classes, labelled=labelled)
    assert pool.probabilities is not None
    expected = greedy(pool.probabilities, pool, budget, squared_l2)
    assert PCoreSet().choose(pool, budget, seed=0).tolist() == expected


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("seed", range(4))
def test_equals_greedy_from_its_definition_in_every_metric(metric: str, seed: int) -> None:
    pool = random_pool(seed, images=40, labelled=4)
    assert pool.probabilities is not None
    expected = greedy(pool.probabilities, pool, 12, METRICS[metric])
    assert PCoreSet(metric=metric).choose(pool, 12, seed=0).tolist() == expected


def test_metrics_are_not_all_the_same() -> None:
    pool = random_pool(0)
    assert len({tuple(PCoreSet(metric=m).choose(pool, 12, seed=0).tolist()) for m in METRICS}) == 4


def one_hot(predicted: list[int], labelled: list[int], classes: int = 6) -> Pool:
    table = np.eye(classes, dtype=np.float16)[predicted]
    left = [i for i in range(len(predicted)) if i not in labelled]
    return Pool(
        probabilities=table,
        labelled=labelled,  # type: ignore[arg-type]
        labels=[0] * len(labelled),  # type: ignore[arg-type]
        unlabelled=left,  # type: ignore[arg-type]
    )


def test_one_hot_predictions_give_the_uncovered_classes_first_lowest_id_first() -> None:
    predicted = [0, 0, 1, 0, 2, 2, 3, 5, 4, 5, 1, 0]
    pool = one_hot(predicted, labelled=[0, 2])
    picks = PCoreSet().choose(pool, 6, seed=0).tolist()
    assert picks[:4] == [4, 6, 7, 8]  # classes 2, 3, 5, 4
    assert picks[4:] == [1, 3]  # every distance is 0: lowest id


def test_centres_are_predictions_and_not_labels() -> None:
    """The labelled image of class 0 is predicted as class 1, so class 0 is what is not covered."""
    pool = one_hot([1, 1, 0], labelled=[0], classes=2)
    assert PCoreSet().choose(pool, 1, seed=0).tolist() == [2]


def test_an_exact_duplicate_of_a_centre_is_last() -> None:
    pool = random_pool(3)
    assert pool.probabilities is not None
    table = pool.probabilities.copy()
    twin = int(pool.unlabelled[0])  # the lowest id, which every tie would favour
    table[twin] = table[pool.labelled[2]]
    changed = Pool(probabilities=table, labelled=pool.labelled, labels=pool.labels, unlabelled=pool.unlabelled)
    assert PCoreSet().choose(changed, len(pool.unlabelled), seed=0)[-1] == twin


def test_unknown_metric_is_refused() -> None:
    with pytest.raises(ConfigError, match="metric 'cosine' is none of l2, l1, hellinger, js"):
        PCoreSet(metric="cosine")
