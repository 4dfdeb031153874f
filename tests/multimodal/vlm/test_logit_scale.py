"""Rules for the logit scale: against a grid, and what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from limbeck.errors import ConfigError
from limbeck.multimodal.vlm.logit_scale import mean_entropy, scale_by_entropy, scale_by_nll


def cosines(count: int = 80, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    values = 0.2 * torch.randn(count, classes, generator=draw)
    values[torch.arange(count), labels] += 0.15
    return values, labels


def naive_nll(values: np.ndarray, labels: np.ndarray, scale: float) -> float:
    total = 0.0
    for row, label in zip(values, labels):
        p = np.exp(scale * row)
        total -= math.log(p[label] / p.sum())
    return total / len(labels)


def test_nll_is_least_at_the_scale():
    values, labels = cosines()
    found = scale_by_nll(values, labels)
    x, y = values.double().numpy(), labels.numpy()
    best = naive_nll(x, y, found)
    assert 1 < found < 100
    assert all(best <= naive_nll(x, y, s) + 1e-9 for s in np.geomspace(0.05, 500, 60))
    eps = 1e-4
    slope = (naive_nll(x, y, found * (1 + eps)) - naive_nll(x, y, found * (1 - eps))) / (2 * eps)
    assert abs(slope) < 1e-4


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_entropy_is_what_was_asked(share):
    values, _ = cosines()
    found = scale_by_entropy(values, share)
    p = torch.softmax(found * values.double(), 1)
    entropy = -(p * p.log()).sum(1).mean()
    assert entropy == pytest.approx(share * math.log(5), abs=1e-6)


def test_scaled_cosines_want_the_inverse_scale():
    values, labels = cosines()
    assert scale_by_entropy(values / 3) == pytest.approx(3 * scale_by_entropy(values), rel=1e-5)
    assert scale_by_nll(values / 3, labels) == pytest.approx(3 * scale_by_nll(values, labels), rel=1e-3)


def test_entropy_falls_from_ln_k_to_0():
    values = cosines()[0].double().numpy()
    found = [mean_entropy(values, s) for s in (1e-6, 1, 10, 100, 1e6)]
    assert found == sorted(found, reverse=True)
    assert found[0] == pytest.approx(math.log(5))
    assert found[-1] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0])
def test_share_out_of_range(share):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        scale_by_entropy(cosines()[0], share)


def test_equal_cosines_have_no_scale():
    with pytest.raises(ConfigError, match="no scale"):
        scale_by_entropy(torch.ones(3, 4))


@pytest.mark.parametrize("shape", [(0, 4), (3, 1), (3,)])
def test_too_few(shape):
    with pytest.raises(ConfigError, match="at least"):
        scale_by_entropy(torch.zeros(shape))
