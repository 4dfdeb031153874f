"""Pools check themselves; strategies are checked once, in the base class; blocks give what the whole array holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from limbeck.engine import selection
from limbeck.engine.registry import STRATEGIES
from limbeck.engine.selection import Pool, Progress, Strategy, row_blocks
from limbeck.errors import ConfigError, UnknownName


class Lowest(Strategy):
    """The lowest ids."""

    needs = frozenset({"probabilities"})

    def pick(self, pool: Pool, budget: int, rng: np.random.Generator, progress: Progress) -> np.ndarray:
        return pool.unlabelled[:budget]


def parts(**changes: Any) -> dict[str, Any]:
    table = np.full((6, 4), 0.25, np.float32)
    made = dict(probabilities=table, labelled=[5, 0], labels=[1, 3], unlabelled=[4, 1, 2])
    return made | changes


def test_pool_keeps_ids_ascending_and_labels_with_them() -> None:
    pool = Pool(**parts())
    assert pool.labelled.tolist() == [0, 5]
    assert pool.labels.tolist() == [3, 1]
    assert pool.unlabelled.tolist() == [1, 2, 4]
    assert (pool.images, pool.classes) == (6, 4)


def test_pool_never_reads_rows_of_ids_that_are_in_neither_array() -> None:
    table = np.full((6, 4), 0.25, np.float16)
    table[3] = np.nan
    features = np.zeros((6, 2), np.float32)
    features[3] = np.inf
    Pool(**parts(probabilities=table, features=features))


def test_pool_without_arrays_takes_any_ids() -> None:
    pool = Pool(labelled=[7], labels=[0], unlabelled=[])
    assert (pool.images, pool.classes, len(pool.unlabelled)) == (8, None, 0)


def broken(row: int, values: list[float]) -> np.ndarray:
    table = np.full((6, 4), 0.25, np.float32)
    table[row] = values
    return table


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(labels=[1]), "2 labelled ids but 1 labels"),
        (dict(labelled=[0.5, 1.5]), "labelled has to be a list of whole numbers"),
        (dict(unlabelled=[[1, 2]]), "unlabelled has to be a list of whole numbers"),
        (dict(unlabelled=[1, 2, 1]), "unlabelled has id 1 more than once"),
        (dict(labelled=[0, 0]), "labelled has id 0 more than once"),
        (dict(unlabelled=[1, 5]), "id 5 is both labelled and unlabelled"),
        (dict(unlabelled=[1, 6]), "unlabelled id 6 is not in 0 to 5"),
        (dict(labelled=[-1, 0]), "labelled id -1 is not in 0 to 5"),
        (dict(labels=[1, 4]), "label 4 of id 0 is not in 0 to 3"),
        (dict(labels=[-1, 0]), "label -1 of id 5"),
        (dict(probabilities=np.ones((6, 1), np.float32)), r"\(images, 2 or more\); got \(6, 1\)"),
        (dict(probabilities=np.ones(6, np.float32)), r"got \(6,\)"),
        (dict(probabilities=[[0.5, 0.5]] * 6), "has to be an array .*; got list"),
        (dict(probabilities=np.ones((6, 4), np.int64)), "float16, float32 or float64; got int64"),
        (dict(probabilities=broken(4, [0.5, 0.5, 0.5, 0.5])), "probabilities of id 4 sum to 2, not 1"),
        (dict(probabilities=broken(5, [0.5, np.nan, 0.25, 0.25])), "id 5 are negative or not finite"),
        (dict(probabilities=broken(2, [np.inf, 0, 0, 0])), "id 2 sum to inf, not 1"),
        (dict(probabilities=broken(1, [1.5, -0.5, 0, 0])), "id 1 are negative or not finite"),
        (dict(features=np.zeros((5, 2), np.float32)), "probabilities of 6 images, features of 5"),
        (dict(features=np.full((6, 2), np.nan, np.float32)), "features of id 0 are not finite"),
    ],
)
def test_pool_says_in_one_sentence_what_is_wrong(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        Pool(**parts(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("budget", [0, -1, 1.0, True, "2"])
def test_budget_has_to_be_a_whole_number_of_at_least_one(budget: Any) -> None:
    with pytest.raises(ConfigError, match="Lowest: budget has to be a whole number of at least 1"):
        Lowest().choose(Pool(**parts()), budget, seed=0)


def test_budget_above_the_unlabelled_images_is_refused_and_all_of_them_is_not() -> None:
    pool = Pool(**parts())
    with pytest.raises(ConfigError, match="budget 4 is more than the 3 unlabelled images"):
        Lowest().choose(pool, 4, seed=0)
    assert Lowest().choose(pool, np.int64(3), seed=0).tolist() == [1, 2, 4]


def test_pool_without_what_a_strategy_needs_is_refused() -> None:
    with pytest.raises(ConfigError, match="Lowest chooses by probabilities, and the pool has none"):
        Lowest().choose(Pool(labelled=[], labels=[], unlabelled=[1]), 1, seed=0)


@pytest.mark.parametrize("wrong", [[1, 1], [1, 5], [1, 3], [1], [[1, 2]]])
def test_a_rule_that_returns_other_ids_is_caught(wrong: list[int]) -> None:
    class Wrong(Lowest):
        def pick(self, pool: Pool, budget: int, rng: np.random.Generator, progress: Progress) -> np.ndarray:
            return np.array(wrong)

    with pytest.raises(ConfigError, match=r"Wrong\.pick has to return 2 distinct unlabelled ids"):
        Wrong().choose(Pool(**parts()), 2, seed=0)


def test_base_class_has_no_rule() -> None:
    with pytest.raises(NotImplementedError, match="Strategy does not implement pick"):
        Strategy().choose(Pool(**parts()), 1, seed=0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("rows", [1, 3, 100, None])
def test_blocks_give_the_rows_in_order_and_are_free_to_change(dtype: type, rows: int | None) -> None:
    values = np.random.default_rng(0).random((20, 5)).astype(dtype)
    before, ids = values.copy(), np.array([0, 3, 4, 11, 19])
    for kind in (np.float32, np.float64):
        found = np.zeros((5, 5), kind)
        for where, block in row_blocks(values, ids, rows=rows, dtype=kind):
            found[where] = block
            assert block.dtype == kind
            block[:] = -1
        np.testing.assert_array_equal(found, values[ids].astype(kind))
    np.testing.assert_array_equal(values, before)


def test_blocks_read_fortran_order_and_read_only_files(tmp_path: Any) -> None:
    values = np.asfortranarray(np.random.default_rng(0).random((9, 5)).astype(np.float16))
    np.save(tmp_path / "p.npy", values)
    mapped = np.load(tmp_path / "p.npy", mmap_mode="r")
    (_, block), *rest = row_blocks(mapped, np.arange(9))
    assert not rest
    np.testing.assert_array_equal(block, values.astype(np.float32))


def test_a_block_holds_no_more_than_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "BLOCK_BYTES", 64)
    sizes = [block.nbytes for _, block in row_blocks(np.zeros((10, 5), np.float16), np.arange(10))]
    assert max(sizes) <= 64
    assert len(sizes) == 4


def test_registry_lists_the_strategies_and_refuses_typos() -> None:
    wanted = {"BADGE", "ClassBalanced", "Coreset", "Entropy", "LeastConfidence", "Margin", "PCoreSet", "Random"}
    assert wanted <= set(STRATEGIES.names())
    assert STRATEGIES.make(dict(type="PCoreSet", metric="l1")).metric == "l1"
    with pytest.raises(UnknownName, match="unknown strategy 'PCoreset'; did you mean 'PCoreSet'"):
        STRATEGIES.make(dict(type="PCoreset"))
    with pytest.raises(UnknownName, match="variants"):
        STRATEGIES.make(dict(type="BADGE", variants="activekd"))
