"""AT against a naive reference, and its invariance to scale, width and channel order."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.vision.methods.at import AT, at_loss, attention_map
from tests.vision.methods import conftest as common


def pooled(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """Means over whole blocks; sizes divide."""
    b, c, h, w = x.shape
    out = np.zeros((b, c, height, width))
    for i in np.ndindex(*out.shape):
        rows, columns = h // height, w // width
        block = x[i[0], i[1], i[2] * rows : (i[2] + 1) * rows, i[3] * columns : (i[3] + 1) * columns]
        out[i] = sum(block.ravel()) / block.size
    return out


def attention(x: np.ndarray, power: float) -> list[float]:
    """One sample (C, H, W)."""
    channels, height, width = x.shape
    values = [
        sum(abs(x[c, i, j]) ** power for c in range(channels)) / channels for i in range(height) for j in range(width)
    ]
    norm = math.sqrt(sum(v * v for v in values))
    return [v / norm for v in values]


def reference(student: np.ndarray, teacher: np.ndarray, power: float = 2.0) -> float:
    height, width = (min(student.shape[k], teacher.shape[k]) for k in (2, 3))
    student, teacher = pooled(student, height, width), pooled(teacher, height, width)
    total = 0.0
    for s, t in zip(student, teacher):
        total += sum((a - b) ** 2 for a, b in zip(attention(s, power), attention(t, power)))
    return total / (len(student) * height * width)


@pytest.mark.parametrize("power", [2.0, 4.0])
@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((2, 3, 4, 4), (2, 3, 4, 4)),
        ((2, 3, 4, 4), (2, 5, 4, 4)),
        ((2, 3, 4, 4), (2, 5, 8, 8)),
        ((2, 3, 4, 4), (2, 5, 2, 2)),
        ((2, 3, 4, 2), (2, 5, 2, 4)),
    ],
)
def test_value_and_gradient_match_naive_reference(
    student: tuple[int, ...], teacher: tuple[int, ...], power: float
) -> None:
    common.check_reference(
        lambda s, t: at_loss(s, t, power=power),
        lambda s, t: reference(s, t, power),
        common.randn(*student, seed=0),
        common.randn(*teacher, seed=1),
    )


def test_larger_map_is_pooled_before_the_power() -> None:
    # A checkerboard of ±1 is pooled to nothing but one bright block; squaring first would keep it.
    teacher = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(2, 2).reshape(1, 1, 4, 4).clone()
    teacher[..., :2, :2] = 1.0
    expected = torch.zeros(1, 1, 2, 2)
    expected[..., 0, 0] = 1.0
    assert at_loss(expected, teacher).item() == pytest.approx(0.0, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([-3.0, -0.01, 0.1, 7.0, 500.0]), st.sampled_from([0, 1]))
def test_scale_and_sign_of_a_map_are_free(seed: int, factor: float, side: int) -> None:
    maps = [common.randn(2, 3, 4, 4, seed=seed), common.randn(2, 5, 4, 4, seed=seed + 1)]
    expected = at_loss(*maps)
    maps[side] = maps[side] * factor
    torch.testing.assert_close(at_loss(*maps), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("side", [0, 1])
def test_order_and_copies_of_channels_are_free(side: int) -> None:
    maps = [common.randn(2, 4, 4, 4, seed=0), common.randn(2, 4, 4, 4, seed=1)]
    expected = at_loss(*maps)
    for channels in ([3, 1, 0, 2], [0, 1, 2, 3] * 3):
        changed = list(maps)
        changed[side] = maps[side][:, channels]
        torch.testing.assert_close(at_loss(*changed), expected)


def test_equal_maps_cost_nothing_and_order_of_pixels_counts() -> None:
    teacher = common.randn(2, 3, 4, 4)
    assert at_loss(teacher.clone(), teacher).item() == 0.0
    assert at_loss(teacher.flip(3), teacher).item() > 1e-3


@pytest.mark.parametrize("side", [0, 1])
def test_map_of_zeros_is_attention_to_nothing(side: int) -> None:
    # Against a unit vector of 16 pixels the squared distance is 1.
    maps = [common.randn(2, 3, 4, 4, seed=0), common.randn(2, 3, 4, 4, seed=1)]
    maps[side] = torch.zeros(2, 3, 4, 4)
    student = maps[0].requires_grad_()
    loss = at_loss(student, maps[1])
    assert loss.item() == pytest.approx(1 / 16, rel=1e-5)
    loss.backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([2.0, 4.0]), st.integers(1, 5), st.integers(1, 5))
def test_stays_below_two_over_the_number_of_pixels(seed: int, power: float, height: int, width: int) -> None:
    student = common.randn(3, 2, height, width, seed=seed)
    teacher = common.randn(3, 4, height, width, seed=seed + 1)
    assert 0.0 <= at_loss(student, teacher, power=power).item() <= 2 / (height * width) + 1e-6


def test_disjoint_attention_reaches_the_bound() -> None:
    student, teacher = torch.zeros(1, 2, 2, 2), torch.zeros(1, 3, 2, 2)
    student[..., 0, 0], teacher[..., 1, 1] = 3.0, -2.0
    assert at_loss(student, teacher).item() == pytest.approx(2 / 4)


def test_attention_map_is_a_unit_vector_without_negatives() -> None:
    q = attention_map(common.randn(3, 5, 4, 2))
    assert q.shape == (3, 8)
    assert q.min() >= 0
    torch.testing.assert_close((q * q).sum(1), torch.ones(3))


def test_joint_order_of_samples_changes_nothing() -> None:
    student, teacher = common.randn(4, 3, 4, 4, seed=0), common.randn(4, 5, 4, 4, seed=1)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(at_loss(student[order], teacher[order]), at_loss(student, teacher))
    assert not torch.isclose(at_loss(student[order], teacher), at_loss(student, teacher))


def test_repeated_batch_keeps_the_loss() -> None:
    student, teacher = common.randn(4, 3, 4, 4, seed=0), common.randn(4, 5, 4, 4, seed=1)
    twice = at_loss(student.repeat(2, 1, 1, 1), teacher.repeat(2, 1, 1, 1))
    torch.testing.assert_close(twice, at_loss(student, teacher))


def test_gradient_reaches_student_only() -> None:
    common.check_one_sided(at_loss, common.randn(2, 3, 4, 4, seed=0), common.randn(2, 5, 2, 2, seed=1))


@pytest.mark.parametrize("dtype", common.HALVES)
def test_autocast_keeps_float32_inside(dtype: torch.dtype) -> None:
    # 400² overflows float16.
    common.check_half(at_loss, common.randn(2, 3, 4, 4, scale=400), common.randn(2, 5, 2, 2, seed=1, scale=400), dtype)


@pytest.mark.parametrize(
    ("teacher", "student", "hint"),
    [
        ((2, 3, 4, 4), (3, 3, 4, 4), "the same batch"),
        ((2, 3, 4, 4), (2, 3), r"a vector \(B, D\) cannot be bridged to a map"),
        ((2, 9, 5), (2, 9, 5), "two maps"),
    ],
)
def test_shapes_that_do_not_fit_are_named(teacher: tuple[int, ...], student: tuple[int, ...], hint: str) -> None:
    for call in (
        lambda: at_loss(torch.zeros(student), torch.zeros(teacher)),
        lambda: AT(taps=[("a", "a")]).connect([teacher], [student]),
    ):
        with pytest.raises(ShapeMismatch, match=hint) as error:
            call()
        assert str(teacher) in str(error.value)
        assert str(student) in str(error.value)


def test_link_adds_the_losses_of_its_stages() -> None:
    students = [common.randn(2, c, n, n, seed=c) for c, n in ((3, 8), (4, 4), (5, 2))]
    teachers = [common.randn(2, c, n, n, seed=c) for c, n in ((6, 8), (7, 8), (8, 2))]
    link = METHODS.make({"type": "AT", "power": 4.0})
    link.connect([tuple(t.shape) for t in teachers], [tuple(s.shape) for s in students])
    terms = link(common.link_inputs(students, teachers))
    assert list(terms) == ["attention"]
    torch.testing.assert_close(terms["attention"], sum(at_loss(s, t, power=4.0) for s, t in zip(students, teachers)))


def test_registry_builds_it_and_refuses_typos() -> None:
    common.check_registered("AT", AT, weight=1000.0, typo="powr", meant="power", power=4.0)
    assert AT().power == 2.0
    assert AT().taps == [(f"layer{i}", f"layer{i}") for i in (1, 2, 3)]


@pytest.mark.parametrize("power", [0.5, float("nan")])
def test_power_below_one_is_refused(power: float) -> None:
    with pytest.raises(ConfigError, match=f"AT needs power >= 1; got {power}"):
        AT(power=power)
