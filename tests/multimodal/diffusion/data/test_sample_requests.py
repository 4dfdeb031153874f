"""Requests for images: labels in turn, noise of their own for every split and seed, no pixels."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from limbeck.engine.config import DataConfig
from limbeck.engine.evaluate import build_dataset, eval_loader
from limbeck.engine.registry import DATASETS
from limbeck.errors import ConfigError, UnknownName
from limbeck.multimodal.diffusion.data.sample_requests import SampleRequests

CLASSES = ["a", "b", "c"]


def test_labels_go_round_and_there_are_no_pixels():
    data = DATASETS.make(dict(type="SampleRequests", classes=CLASSES, count=9, split="val", name="letters"))
    assert (len(data), data.name, data.classes, data.views) == (9, "letters", CLASSES, 1)
    batch = data.__getitems__([8, 0, 4])
    assert batch["inputs"].shape == (3, 0)
    samples = batch["data_samples"]
    assert samples["labels"].tolist() == [2, 0, 1]
    assert samples["ids"].tolist() == [8, 0, 4]
    assert samples["splits"].tolist() == [1, 1, 1]
    assert data[5]["inputs"].shape == (0,)
    assert int(data[5]["data_samples"]["labels"]) == 2


def test_no_two_splits_or_seeds_share_noise_nor_a_hash_but_for_training():
    seeds, hashes = set(), set()
    for split, seed in product(("train", "val", "test"), range(5)):
        data = SampleRequests(CLASSES, 6, split, seed)
        found = data.__getitems__(range(6))["data_samples"]["seeds"]
        assert len(set(found.tolist())) == 1
        seeds.add(int(found[0]))
        hashes.add(data.content_hash)
    assert len(seeds) == 15
    assert len(hashes) == 5 + 5 + 1  # runs of several seeds are compared, and train on one and the same set
    assert SampleRequests(CLASSES, 6).content_hash == SampleRequests(CLASSES, 6).content_hash
    assert SampleRequests(CLASSES, 6).content_hash != SampleRequests(CLASSES, 9).content_hash


def test_loaders_give_them_in_order_and_val_and_test_do_not_follow_the_runs_seed():
    ask = dict(type="SampleRequests", classes=CLASSES, count=6)
    data = DataConfig(
        train=dict(ask, split="train"), val=dict(ask, split="val"), test=dict(ask, split="test"), eval_batch_size=4
    )
    batches = list(eval_loader(data, "test"))
    assert [len(b["inputs"]) for b in batches] == [4, 2]
    assert torch.cat([b["data_samples"]["ids"] for b in batches]).tolist() == list(range(6))
    assert build_dataset(data, "train", seed=5).seed == 5
    assert build_dataset(data, "val").seed == 0


@pytest.mark.parametrize(("classes", "count"), [(CLASSES, 0), (CLASSES, 10), ([], 4)])
def test_counts_that_leave_classes_unequal_are_refused(classes, count):
    with pytest.raises(ConfigError, match="count of samples is a multiple of its"):
        SampleRequests(classes, count)


def test_other_splits_are_refused():
    with pytest.raises(UnknownName, match="unknown split 'tests'"):
        SampleRequests(CLASSES, 3, "tests")
