"""ScaleKD's parts: both views against naive references and an explicit DCT, and the cross-attention projector."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn
from torch import Tensor, nn

from limbeck.engine.bridges_tokens import tap_form
from limbeck.errors import ShapeMismatch
from limbeck.vision.methods._cross_attention import CrossAttentionProjector
from limbeck.vision.methods.scalekd import frequency_view_loss, remove_dc, spatial_view_loss
from tests.vision.methods import conftest as common

# --- the views ---


def spatial_reference(student: np.ndarray, teacher: np.ndarray, alpha: float = 0.08) -> float:
    total = 0.0
    for b, i, j in np.ndindex(student.shape[0], *student.shape[2:]):
        s, t = student[b, :, i, j], teacher[b, :, i, j]
        s, t = s / math.sqrt(sum(s * s)), t / math.sqrt(sum(t * t))
        total += sum((s - t) ** 2)
    return alpha * total / len(student)


def without_dc(x: np.ndarray) -> np.ndarray:
    """By an explicit two-dimensional DCT-II of every channel."""
    out = np.empty_like(x)
    for b, c in np.ndindex(*x.shape[:2]):
        coefficients = dctn(x[b, c], norm="ortho")
        coefficients[0, 0] = 0.0
        out[b, c] = idctn(coefficients, norm="ortho")
    return out


def frequency_reference(student: np.ndarray, teacher: np.ndarray, alpha: float = 0.06) -> float:
    return spatial_reference(without_dc(student), without_dc(teacher), alpha)


@pytest.mark.parametrize(
    ("loss", "reference"),
    [(spatial_view_loss, spatial_reference), (frequency_view_loss, frequency_reference)],
)
def test_value_and_gradient_match_references(loss: Any, reference: Any) -> None:
    student, teacher = common.randn(2, 3, 3, 2, seed=0), common.randn(2, 3, 3, 2, seed=1)
    common.check_reference(loss, reference, student, teacher)
    assert loss(student, teacher, alpha=0.5).item() == pytest.approx(
        reference(common.array(student), common.array(teacher), 0.5), rel=1e-5
    )


def test_removing_dc_is_zeroing_the_first_dct_coefficient() -> None:
    x = common.randn(2, 3, 5, 4, scale=3)
    np.testing.assert_allclose(remove_dc(x).numpy(), without_dc(common.array(x)), atol=1e-5)


@pytest.mark.parametrize("loss", [spatial_view_loss, frequency_view_loss])
def test_views_are_zero_at_equality_and_blind_to_scale(loss: Any) -> None:
    student, teacher = common.randn(2, 3, 4, 4, seed=0), common.randn(2, 3, 4, 4, seed=1)
    assert loss(teacher.clone(), teacher).item() == pytest.approx(0.0, abs=1e-9)
    expected = loss(student, teacher)
    torch.testing.assert_close(loss(7 * student, teacher), expected)
    torch.testing.assert_close(loss(student, 0.3 * teacher), expected)
    torch.testing.assert_close(loss(student.repeat(2, 1, 1, 1), teacher.repeat(2, 1, 1, 1)), expected)
    order = torch.tensor([1, 0])
    torch.testing.assert_close(loss(student[order], teacher[order]), expected)


def test_a_constant_per_channel_is_seen_by_the_spatial_view_alone() -> None:
    student, teacher = common.randn(2, 3, 4, 4, seed=0), common.randn(2, 3, 4, 4, seed=1)
    constant = common.randn(1, 3, 1, 1, seed=2, scale=5)
    expected = frequency_view_loss(student, teacher)
    torch.testing.assert_close(frequency_view_loss(student + constant, teacher), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(frequency_view_loss(student, teacher + constant), expected, rtol=1e-4, atol=1e-6)
    assert not torch.isclose(spatial_view_loss(student + constant, teacher), spatial_view_loss(student, teacher))


def test_opposite_maps_reach_the_bound_and_zero_maps_stay_finite() -> None:
    teacher = common.randn(2, 3, 4, 5)
    assert spatial_view_loss(-teacher, teacher).item() == pytest.approx(4 * 4 * 5 * 0.08, rel=1e-5)
    zeros = torch.zeros(2, 3, 4, 5)
    # A zero map is compared as zero, and each unit vector of the teacher counts 1.
    assert spatial_view_loss(zeros, teacher).item() == pytest.approx(4 * 5 * 0.08, rel=1e-5)
    assert torch.isfinite(common.gradient_of(spatial_view_loss, zeros, teacher)).all()


@pytest.mark.parametrize("loss", [spatial_view_loss, frequency_view_loss])
def test_gradient_is_the_students_and_float32_is_used_inside(loss: Any) -> None:
    student, teacher = common.randn(2, 3, 4, 4, seed=0, scale=300), common.randn(2, 3, 4, 4, seed=1, scale=300)
    common.check_one_sided(loss, student, teacher)
    for dtype in common.HALVES:
        common.check_half(loss, student, teacher, dtype)


def test_unequal_maps_are_named() -> None:
    for loss in (spatial_view_loss, frequency_view_loss):
        with pytest.raises(ShapeMismatch, match=r"ScaleKD: teacher tap \(2, 6, 4, 4\) and student tap \(2, 3, 4, 4\)"):
            loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 6, 4, 4))
    with pytest.raises(ShapeMismatch, match=r"maps \(B, D, H, W\) are needed"):
        spatial_view_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))


# --- the projector ---


def attention_reference(cap: CrossAttentionProjector, x: Tensor, queries: Tensor) -> np.ndarray:
    """Head by head and query by query, from the projector's weights."""

    def linear(layer: nn.Module, v: np.ndarray) -> np.ndarray:
        return v @ common.array(layer.weight).T + common.array(layer.bias)  # type: ignore[arg-type]

    source = common.array((cap.conv(x) + cap.position).flatten(2).transpose(1, 2))
    q = linear(cap.query[2], np.maximum(linear(cap.query[0], common.array(queries)), 0))
    k, v = linear(cap.key, source), linear(cap.value, source)
    size = q.shape[-1] // cap.heads
    out = np.zeros_like(q)
    for b, i, h in np.ndindex(*q.shape[:2], cap.heads):
        part = slice(h * size, (h + 1) * size)
        scores = np.array([5 * (q[b, i, part] @ key) / math.sqrt(size) for key in k[b, :, part]])
        out[b, i, part] = np.array(common.softmax(scores)) @ v[b, :, part]
    z = linear(cap.out, out)
    z = (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-5)
    return z + linear(cap.ffn[2], np.maximum(linear(cap.ffn[0], z), 0))


@pytest.mark.parametrize("own", [True, False])
def test_projector_matches_naive_attention(own: bool) -> None:
    torch.manual_seed(0)
    cap = CrossAttentionProjector(tap_form((2, 5, 4, 3)), 6, 8, 2, own_queries=own).eval()
    x = common.randn(2, 5, 4, 3)
    given = None if own else common.randn(2, 6, 8, seed=1)
    queries = cap.queries.expand(2, -1, -1) if given is None else given
    np.testing.assert_allclose(cap(x, given).detach().numpy(), attention_reference(cap, x, queries), atol=1e-5)


@pytest.mark.parametrize(("student", "tokens"), [((2, 5, 14, 14), 49), ((2, 5, 2, 3), 64), ((2, 17, 5), 9)])
def test_projector_gives_the_teachers_grid_whatever_the_students(student: tuple[int, ...], tokens: int) -> None:
    cap = CrossAttentionProjector(tap_form(student), tokens, 8, 2, own_queries=True)
    assert cap(torch.zeros(student)).shape == (2, tokens, 8)


def test_projector_begins_as_the_paper_says() -> None:
    torch.manual_seed(0)
    cap = CrossAttentionProjector(tap_form((2, 8, 16, 16)), 64, 32, 1, own_queries=True)
    assert cap.position.shape == (1, 8, 16, 16)
    assert cap.position.std().item() == pytest.approx(0.02, rel=0.1)
    assert cap.queries.std().item() == pytest.approx(1.0, rel=0.1)
    assert CrossAttentionProjector(tap_form((2, 8, 4, 4)), 64, 32, 1, own_queries=False).queries is None
