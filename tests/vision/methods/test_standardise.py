"""Logit standardisation against numpy, its invariances, and what happens without spread."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from limbeck.errors import ShapeMismatch
from limbeck.vision.methods._standardise import standardise
from limbeck.vision.methods.kd import kd_loss
from tests.vision.methods import conftest as common


def reference(z: np.ndarray) -> np.ndarray:
    result = np.zeros_like(z)
    for i, row in enumerate(z):
        mean = sum(row) / len(row)
        std = (sum((v - mean) ** 2 for v in row) / (len(row) - 1)) ** 0.5
        result[i] = [(v - mean) / (std + 1e-7) for v in row]
    return result


def test_value_and_gradient_match_naive_reference() -> None:
    logits = common.randn(5, 7, seed=0, scale=3)
    np.testing.assert_allclose(standardise(logits).numpy(), reference(common.array(logits)), rtol=1e-5, atol=1e-6)
    upstream = common.randn(5, 7, seed=1)
    found = common.gradient_of(lambda s, t: (standardise(s) * t).sum(), logits, upstream)
    weights = common.array(upstream)
    slope = common.numeric_gradient(lambda z: float((reference(z) * weights).sum()), common.array(logits))
    np.testing.assert_allclose(found.numpy(), slope, rtol=1e-3, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 50), st.floats(0.01, 100.0), st.floats(-50.0, 50.0))
def test_mean_is_zero_deviation_one_and_the_largest_value_bounded(
    seed: int, classes: int, scale: float, shift: float
) -> None:
    logits = common.randn(4, classes, seed=seed, scale=scale) + shift
    z, std = standardise(logits), logits.double().std(1)
    torch.testing.assert_close(z.mean(1), torch.zeros(4), rtol=0, atol=1e-5)
    # 1 but for the 1e-7, which counts where two logits are all but equal.
    torch.testing.assert_close(z.double().std(1), std / (std + 1e-7), rtol=0, atol=1e-5)
    assert z.abs().max() <= (classes - 1) / classes**0.5 + 1e-4


def test_scale_and_shift_of_a_sample_change_nothing() -> None:
    z = common.randn(3, 6, seed=0)
    moved = torch.tensor([[0.1], [2.0], [30.0]]) * z + torch.tensor([[4.0], [-7.0], [0.5]])
    torch.testing.assert_close(standardise(moved), standardise(z), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(standardise(-z), standardise(z))


def test_loss_gradient_is_orthogonal_to_ones_and_to_centred_logits() -> None:
    student, teacher = common.randn(6, 9, seed=0, scale=2), common.randn(6, 9, seed=1, scale=2)
    slope = common.gradient_of(
        lambda s, t: kd_loss(standardise(s), standardise(t), temperature=2.0), student, teacher
    ).double()
    centred = (student - student.mean(1, keepdim=True)).double()
    assert slope.abs().max() > 1e-3
    torch.testing.assert_close(slope.sum(1), torch.zeros(6).double(), rtol=0, atol=1e-7)
    torch.testing.assert_close((slope * centred).sum(1), torch.zeros(6).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 3.3, -1000.1])
def test_a_sample_without_spread_gives_zero_and_no_gradient(value: float) -> None:
    student = common.randn(3, 7, seed=0)
    student[1] = value
    teacher = common.randn(3, 7, seed=1)
    assert torch.equal(standardise(student)[1], torch.zeros(7))
    assert torch.isfinite(kd_loss(standardise(student), standardise(teacher)))
    slope = common.gradient_of(lambda s, t: kd_loss(standardise(s), standardise(t)), student, teacher)
    assert torch.equal(slope[1], torch.zeros(7))
    alone = common.gradient_of(lambda s, t: kd_loss(standardise(s), standardise(t)), student[::2], teacher[::2])
    torch.testing.assert_close(slope[::2], alone * 2 / 3)


def test_dense_logits_are_standardised_at_each_pixel() -> None:
    z = common.randn(2, 5, 3, 4, seed=0)
    rows = z.movedim(1, -1).reshape(-1, 5)
    expected = reference(common.array(rows)).reshape(2, 3, 4, 5).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(standardise(z).numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", common.HALVES)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    z = common.randn(4, 100, seed=0, scale=5).to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        found = standardise(z)
    assert found.dtype == torch.float32
    assert torch.equal(found, standardise(z.float()))


@pytest.mark.parametrize("z", [torch.zeros(4, 1), torch.zeros(4)])
def test_one_class_is_refused(z: Tensor) -> None:
    with pytest.raises(ShapeMismatch, match=r"logits .* have no deviation over classes; \(B, C\) with two classes"):
        standardise(z)
