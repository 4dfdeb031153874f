"""Batches of labelled and unlabelled ids: passes are permutations; a batch depends on seed, epoch and step alone."""

from __future__ import annotations

import numpy as np
import pytest

from limbeck.engine.mixed import MixedBatchSampler
from limbeck.errors import ConfigError

LABELLED, UNLABELLED = [3, 10, 11, 20, 40], list(range(100, 117))


def sampler(**changes) -> MixedBatchSampler:
    options = dict(labelled_per_batch=2, unlabelled_per_batch=6, steps=7, seed=0)
    return MixedBatchSampler(LABELLED, UNLABELLED, **{**options, **changes})


def epochs(batches: MixedBatchSampler, count: int) -> list[list[int]]:
    found = []
    for epoch in range(count):
        batches.set_epoch(epoch)
        found += list(batches)
    return found


def passes(ids: list[int], size: int) -> list[list[int]]:
    return [ids[i : i + size] for i in range(0, len(ids) - size + 1, size)]


def test_labelled_ids_come_first_and_every_pass_is_another_permutation():
    batches = epochs(sampler(), 10)
    assert len(batches) == 70
    assert len(sampler()) == 7
    assert all(set(b[:2]) <= set(LABELLED) and set(b[2:]) <= set(UNLABELLED) and len(b) == 8 for b in batches)
    for ids, part in ((LABELLED, slice(2)), (UNLABELLED, slice(2, None))):
        whole = passes([i for b in batches for i in b[part]], len(ids))  # they go on from epoch to epoch
        assert len(whole) == 70 * (2 if ids is LABELLED else 6) // len(ids)
        assert all(sorted(p) == ids for p in whole)
        assert len({tuple(p) for p in whole}) > len(whole) // 2


def test_a_batch_depends_on_seed_epoch_and_step_alone():
    straight = epochs(sampler(), 5)
    late = sampler()
    late.sampler.set_epoch(3)
    assert list(late) == straight[21:28]
    assert list(late) == straight[21:28]
    assert epochs(sampler(seed=1), 5) != straight


def test_the_two_parts_have_orders_of_their_own():
    both = MixedBatchSampler(range(8), range(8), labelled_per_batch=8, unlabelled_per_batch=8, steps=1)
    (batch,) = both
    assert sorted(batch[:8]) == sorted(batch[8:]) == list(range(8))
    assert batch[:8] != batch[8:]


def test_a_batch_that_needs_more_ids_than_there_are_repeats_them_evenly():
    for batch in epochs(sampler(labelled_per_batch=12), 3):
        counts = np.unique(batch[:12], return_counts=True)[1]
        assert len(counts) == 5
        assert counts.max() <= 4  # 12 of 5: two whole passes and at most two cut ones


def test_processes_share_the_batches_of_one():
    whole = epochs(sampler(), 2)
    first, second = (epochs(sampler(rank=rank, world=2), 2) for rank in (0, 1))
    for batch, a, b in zip(whole, first, second, strict=True):
        assert len(a) == len(b) == 4
        assert sorted(a + b) == sorted(batch)
        assert set(a[:1]) <= set(LABELLED)
        assert set(a[1:]) <= set(UNLABELLED)


def test_an_epoch_is_one_pass_over_the_labelled_ids_unless_steps_are_given():
    assert len(sampler(steps=0)) == 2  # 5 ids, 2 a batch
    assert len(sampler(steps=0, labelled_per_batch=64)) == 1


def test_without_unlabelled_ids_batches_are_labelled():
    none = MixedBatchSampler(LABELLED, [], labelled_per_batch=2, unlabelled_per_batch=6, steps=3)
    assert [len(b) for b in none] == [2, 2, 2]
    assert [len(b) for b in sampler(unlabelled_per_batch=0)] == [2] * 7


@pytest.mark.parametrize(
    ("labelled", "changes", "said"),
    [
        ([], {}, "need a labelled sample"),
        (LABELLED, dict(labelled_per_batch=0), "one labelled sample at least"),
        (LABELLED, dict(unlabelled_per_batch=-1), "no count is negative"),
        (LABELLED, dict(world=4), "2 labelled and 6 unlabelled samples .* 4 processes"),
    ],
)
def test_what_cannot_be_sampled_is_refused(labelled, changes, said):
    options = {**dict(labelled_per_batch=2, unlabelled_per_batch=6), **changes}
    with pytest.raises(ConfigError, match=said):
        MixedBatchSampler(labelled, UNLABELLED, **options)
