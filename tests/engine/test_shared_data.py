"""Data sets shared between runs: built once for each config, and what one run does to its own the next does not see."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from limbeck.engine.registry import DATASETS
from limbeck.engine.shared_data import make_dataset, shared_data
from limbeck.errors import UnknownName

DIGITS: dict[str, Any] = dict(type="Digits", split="train", augment=dict(pad=1), views=3, seed=1)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the registry builds, in order."""
    found: list[Any] = []
    make = DATASETS.make

    def counted(*args: Any, **options: Any) -> Any:
        found.append(make(*args, **options))
        return found[-1]

    monkeypatch.setattr(DATASETS, "make", counted)
    return found


def test_equal_configs_are_built_once_within_and_anew_outside(built: list[Any]) -> None:
    make_dataset(DIGITS)
    with shared_data():
        first = make_dataset(DIGITS)
        with shared_data():
            again = make_dataset(dict(reversed(DIGITS.items())))
        assert len(built) == 2
        assert first is not again
        assert first.pixels is again.pixels
        assert make_dataset(DIGITS | dict(seed=2)).pixels is not first.pixels
    make_dataset(DIGITS)
    assert len(built) == 4


def test_each_has_an_epoch_and_labels_of_its_own() -> None:
    ids = np.arange(5)
    fresh = DATASETS.make(DIGITS)
    with shared_data():
        first = make_dataset(DIGITS)
        first.set_epoch(2)
        first.labels = np.full(len(first), -1)
        second = make_dataset(DIGITS)
    assert (first.view, second.view) == (2, 0)
    assert second._epoch.is_shared()
    for key in ("inputs", "data_samples"):
        torch.testing.assert_close(second.__getitems__(ids)[key], fresh.__getitems__(ids)[key], rtol=0, atol=0)
    fresh.set_epoch(2)
    assert torch.equal(first.__getitems__(ids)["inputs"], fresh.__getitems__(ids)["inputs"])
    assert second.content_hash == fresh.content_hash
    assert second.pipeline() == fresh.pipeline()


def test_one_that_wraps_another_is_built_anew_around_shared_pixels(built: list[Any]) -> None:
    of = {key: value for key, value in DIGITS.items() if key != "split"}
    config = dict(type="PartlyLabelled", split="train", of=of, labelled=[3, 4, 5])
    with shared_data():
        first = make_dataset(config)
        first.set_epoch(1)
        second = make_dataset(config)
        truth = make_dataset(DIGITS)
    assert [type(one).__name__ for one in built].count("Digits") == 1
    assert (first.view, first._base.view, second.view, second._base.view) == (1, 1, 0, 0)
    assert (first._base.labels == -1).all()
    assert np.array_equal(truth.labels[[3, 4, 5]], second.labels[[3, 4, 5]])  # hidden in the wrapped ones alone


def test_errors_are_those_of_the_registry() -> None:
    with shared_data(), pytest.raises(UnknownName, match=r"in data\.train"):
        make_dataset(dict(type="Digit", split="train"), where="in data.train")
