"""The mix of two heads against float64 numpy and at its limits; the search against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.multimodal.vlm.knobs import ALPHAS, BETAS, mix_log_probs, search_knobs
from tests.multimodal.vlm.toys import softmax


def heads(count: int = 40, classes: int = 5, seed: int = 0, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ce, kd = scale * torch.randn(2, count, classes, generator=generator)
    return ce, kd


def loop(ce: np.ndarray, kd: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    best = (0.0, 0.0, -1.0)
    for beta in BETAS:
        for alpha in ALPHAS:
            p = alpha * softmax(ce) + (1 - alpha) * softmax(kd / beta)
            value = 100.0 * float(np.mean(p.argmax(1) == labels))
            if value > best[2]:
                best = (alpha, beta, value)
    return best


@pytest.mark.parametrize("alpha", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("beta", [0.5, 1.0, 4.0])
def test_mix_equals_numpy_and_sums_to_one(alpha, beta):
    ce, kd = heads()
    expected = alpha * softmax(ce.double().numpy()) + (1 - alpha) * softmax(kd.double().numpy() / beta)
    found = mix_log_probs(ce, kd, alpha, beta).exp()
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.sum(1).numpy(), np.ones(40), rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1), st.floats(0.1, 10), st.floats(-50, 50))
def test_a_constant_added_to_either_head_changes_nothing(alpha, beta, shift):
    ce, kd = (x.double() for x in heads(6))
    expected = mix_log_probs(ce, kd, alpha, beta)
    torch.testing.assert_close(mix_log_probs(ce + shift, kd, alpha, beta), expected)
    torch.testing.assert_close(mix_log_probs(ce, kd + shift, alpha, beta), expected)


def test_limits_are_the_heads_themselves():
    ce, kd = heads(500)
    for beta in (0.5, 1.0, 4.0, 1e6):
        assert torch.equal(mix_log_probs(ce, kd, 1.0, beta), ce.log_softmax(1))
        assert torch.equal(mix_log_probs(ce, kd, 1.0, beta).argmax(1), ce.argmax(1))
    for beta in (0.5, 1.0, 4.0):
        assert torch.equal(mix_log_probs(ce, kd, 0.0, beta).argmax(1), kd.argmax(1))
    top = ce.softmax(1).topk(2).values
    clear = top[:, 0] - top[:, 1] > 1e-3
    assert clear.sum() > 450
    assert torch.equal(mix_log_probs(ce, kd, 0.1, 1e6).argmax(1)[clear], ce.argmax(1)[clear])


def test_extreme_logits_and_half_precision_stay_finite():
    ce, kd = torch.tensor([[1000.0, 0.0]]), torch.tensor([[0.0, 1000.0]])
    np.testing.assert_allclose(mix_log_probs(ce, kd, 0.5, 1.0).numpy(), np.log([[0.5, 0.5]]), rtol=1e-6)
    found = mix_log_probs(*(x.half() for x in heads()), 0.5, 1.0)
    assert found.dtype == torch.float32
    assert bool(found.isfinite().all())


@pytest.mark.parametrize("seed", range(6))
def test_search_equals_a_plain_loop(seed):
    ce, kd = heads(60, seed=seed)
    labels = torch.where(
        torch.rand(60, generator=torch.Generator().manual_seed(seed)) < 0.5, ce.argmax(1), kd.argmax(1)
    )
    found = search_knobs(ce, kd, labels)
    alpha, beta, value = loop(ce.double().numpy(), kd.double().numpy(), labels.numpy())
    assert (found.alpha, found.beta) == (alpha, beta)
    assert found.top1 == pytest.approx(value)
    for head in (ce, kd):
        assert found.top1 >= 100.0 * float((head.argmax(1) == labels).double().mean())


def test_equal_values_give_the_smallest_beta_then_the_smallest_alpha():
    ce, _ = heads(20)
    found = search_knobs(ce, ce, ce.argmax(1))
    assert (found.alpha, found.beta, found.top1) == (0.0, 0.5, 100.0)
    ce, kd = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    found = search_knobs(ce, kd, torch.tensor([0]), alphas=(1.0, 0.0), betas=(4.0, 1.0))
    assert (found.alpha, found.beta) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("args", "options", "error"),
    [
        ((torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2)), {}, ShapeMismatch),
        ((torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3)), {}, ShapeMismatch),
        ((torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0)), {}, ConfigError),
        ((torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2)), dict(alphas=()), ConfigError),
        ((torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2)), dict(alphas=(1.1,)), ConfigError),
        ((torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2)), dict(betas=(0.0,)), ConfigError),
    ],
)
def test_what_cannot_be_searched_is_refused(args, options, error):
    with pytest.raises(error):
        search_knobs(*args, **options)
