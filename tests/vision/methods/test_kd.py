"""KD against a naive reference, its analytic gradient, and its invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.vision.methods.kd import KD, check_labels, kd_loss
from tests.vision.methods import conftest as common

LOGITS = hnp.arrays(np.float32, (3, 4), elements=st.floats(-20, 20, width=32))


def reference(student: np.ndarray, teacher: np.ndarray, temperature: float = 4.0) -> float:
    total = 0.0
    for z_s, z_t in zip(student, teacher):
        q, p = common.softmax(z_s / temperature), common.softmax(z_t / temperature)
        for p_c, q_c in zip(p, q):
            total += p_c * (math.log(p_c) - math.log(q_c))
    return temperature**2 * total / len(student)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_value_and_gradient_match_naive_reference(temperature: float) -> None:
    common.check_reference(
        lambda s, t: kd_loss(s, t, temperature=temperature),
        lambda s, t: reference(s, t, temperature),
        common.randn(5, 7, seed=0, scale=3),
        common.randn(5, 7, seed=1, scale=3),
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_gradient_is_temperature_over_batch_times_difference_of_probabilities(temperature: float) -> None:
    student, teacher = common.randn(6, 9, seed=0, scale=3), common.randn(6, 9, seed=1, scale=3)
    found = common.gradient_of(lambda s, t: kd_loss(s, t, temperature=temperature), student, teacher)
    for i in range(6):
        q, p = (common.softmax(z[i] / temperature) for z in (common.array(student), common.array(teacher)))
        expected = [temperature / 6 * (a - b) for a, b in zip(q, p)]
        np.testing.assert_allclose(found[i].numpy(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.sum(dim=1), torch.zeros(6), rtol=0, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(LOGITS, LOGITS)
def test_never_negative_and_zero_at_equality(student: np.ndarray, teacher: np.ndarray) -> None:
    s, t = torch.from_numpy(student), torch.from_numpy(teacher)
    assert kd_loss(s, t).item() >= -1e-5
    assert abs(kd_loss(t.clone(), t).item()) < 1e-6


@settings(max_examples=25, deadline=None)
@given(LOGITS, LOGITS, hnp.arrays(np.float32, (3, 1), elements=st.floats(-50, 50, width=32)))
def test_shift_of_a_sample_changes_nothing(student: np.ndarray, teacher: np.ndarray, shift: np.ndarray) -> None:
    s, t, d = (torch.from_numpy(x) for x in (student, teacher, shift))
    expected = kd_loss(s, t)
    torch.testing.assert_close(kd_loss(s + d, t), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(kd_loss(s, t + d), expected, rtol=1e-3, atol=1e-3)


def test_joint_order_of_classes_or_samples_changes_nothing() -> None:
    student, teacher = common.randn(5, 7, seed=0), common.randn(5, 7, seed=1)
    classes, samples = torch.tensor([3, 0, 6, 1, 5, 2, 4]), torch.tensor([4, 2, 0, 1, 3])
    expected = kd_loss(student, teacher)
    torch.testing.assert_close(kd_loss(student[:, classes], teacher[:, classes]), expected)
    torch.testing.assert_close(kd_loss(student[samples], teacher[samples]), expected)
    assert not torch.isclose(kd_loss(student[samples], teacher), expected)


def test_repeated_batch_keeps_the_loss_and_classes_are_summed() -> None:
    student, teacher = common.randn(5, 7, seed=0), common.randn(5, 7, seed=1)
    expected = kd_loss(student, teacher, temperature=1.0)
    torch.testing.assert_close(kd_loss(student.repeat(2, 1), teacher.repeat(2, 1), temperature=1.0), expected)
    # The mean over all elements, a common mistake, is smaller by the number of classes.
    log_p, log_q = teacher.log_softmax(1), student.log_softmax(1)
    torch.testing.assert_close(expected, 7 * (log_p.exp() * (log_p - log_q)).mean())


def test_high_temperature_limit_is_matching_of_centred_logits() -> None:
    student, teacher = common.randn(6, 10, seed=0), common.randn(6, 10, seed=1)
    total = 0.0
    for row in common.array(student) - common.array(teacher):
        total += sum((d - row.mean()) ** 2 for d in row) / (2 * 10)
    assert kd_loss(student, teacher, temperature=100.0).item() == pytest.approx(total / 6, rel=0.02)


def test_gradient_reaches_student_only() -> None:
    common.check_one_sided(kd_loss, common.randn(4, 5, seed=0), common.randn(4, 5, seed=1))


@pytest.mark.parametrize("dtype", common.HALVES)
def test_autocast_keeps_float32_inside(dtype: torch.dtype) -> None:
    common.check_half(kd_loss, common.randn(4, 100, seed=0, scale=5), common.randn(4, 100, seed=1, scale=5), dtype)


def test_certain_logits_stay_finite() -> None:
    student, teacher = torch.tensor([[1000.0, 0.0]]), torch.tensor([[0.0, 1000.0]])
    # The divergence of two opposite certainties is their log ratio.
    assert kd_loss(student, teacher, temperature=1.0).item() == pytest.approx(1000.0)


@pytest.mark.parametrize(
    ("teacher", "student", "hint"),
    [
        ((4, 100), (4, 10), "a student head of 100 classes"),
        ((4, 10), (5, 10), "the same batch"),
        ((4, 10, 8, 8), (4, 10), r"tap logits \(B, C\)"),
        ((4, 10, 8, 8), (4, 10, 8, 8), r"tap logits \(B, C\)"),
        ((4, 1), (4, 1), "two or more would fit"),
    ],
)
def test_shapes_that_do_not_fit_are_named(teacher: tuple[int, ...], student: tuple[int, ...], hint: str) -> None:
    pattern = rf"KD: teacher logits \({', '.join(map(str, teacher))}\) and student logits .*; .*{hint}"
    with pytest.raises(ShapeMismatch, match=pattern):
        kd_loss(torch.zeros(student), torch.zeros(teacher))
    with pytest.raises(ShapeMismatch, match=pattern):
        KD().connect([teacher], [student])


def test_link_gives_the_pure_loss_with_its_temperature() -> None:
    student, teacher = common.randn(4, 5, seed=0), common.randn(4, 5, seed=1)
    link = METHODS.make({"type": "KD", "temperature": 2.0})
    link.connect([(4, 5)], [(4, 5)])
    terms = link(common.link_inputs(student, teacher))
    assert list(terms) == ["kl"]
    torch.testing.assert_close(terms["kl"], kd_loss(student, teacher, temperature=2.0))
    assert not list(link.parameters())


def test_link_adds_the_losses_of_several_heads() -> None:
    pairs = [(common.randn(4, 5, seed=i), common.randn(4, 5, seed=9 + i)) for i in range(2)]
    link = KD(taps=[("logits", "logits"), ("logits", "aux")])
    terms = link(common.link_inputs([s for s, _ in pairs], [t for _, t in pairs]))
    torch.testing.assert_close(terms["kl"], kd_loss(*pairs[0]) + kd_loss(*pairs[1]))


def test_registry_builds_it_and_refuses_typos() -> None:
    common.check_registered("KD", KD, weight=0.9, typo="temprature", meant="temperature", temperature=1.0)
    assert KD().temperature == 4.0
    assert KD().standardise is False
    assert METHODS.make({"type": "KD", "standardise": True}).standardise is True
    assert KD().taps == [("logits", "logits")]


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ConfigError, match=f"KD needs temperature > 0; got {temperature}"):
        KD(temperature=temperature)


def test_standardised_link_is_the_loss_of_standardised_logits() -> None:
    student, teacher = common.randn(4, 5, seed=0, scale=3), common.randn(4, 5, seed=1, scale=3)
    z_s, z_t = (
        (z - z.mean(1, keepdims=True)) / z.std(1, ddof=1, keepdims=True) for z in map(common.array, (student, teacher))
    )
    found = KD(standardise=True, temperature=2.0)(common.link_inputs(student, teacher))["kl"]
    assert found.item() == pytest.approx(reference(z_s, z_t, 2.0), rel=1e-5)
    assert not torch.isclose(found, kd_loss(student, teacher, temperature=2.0))


def test_standardised_link_sees_neither_scale_nor_shift() -> None:
    link = KD(standardise=True, temperature=2.0)
    student, teacher = common.randn(4, 5, seed=0), common.randn(4, 5, seed=1)
    scale, shift = torch.tensor([[0.2], [1.0], [3.0], [9.0]]), torch.tensor([[5.0], [-2.0], [0.0], [1.0]])
    expected = link(common.link_inputs(student, teacher))["kl"]
    for s, t in ((scale * student + shift, teacher), (student, scale * teacher + shift)):
        torch.testing.assert_close(link(common.link_inputs(s, t))["kl"], expected, rtol=1e-4, atol=1e-6)
    equal = link(common.link_inputs(scale * teacher + shift, teacher))["kl"]
    assert abs(equal.item()) < 1e-5
    assert kd_loss(scale * teacher + shift, teacher, temperature=2.0) > 0.1


def test_default_link_is_the_unstandardised_loss_bit_for_bit() -> None:
    student, teacher = common.randn(4, 5, seed=0, scale=3), common.randn(4, 5, seed=1, scale=3)
    assert torch.equal(KD()(common.link_inputs(student, teacher))["kl"], kd_loss(student, teacher))


def test_labels_are_in_range() -> None:
    check_labels("KD", torch.tensor([0, 4, 2]), batch=3, classes=5)
    for wrong in (-1, 5):
        with pytest.raises(ShapeMismatch, match=f"KD: label {wrong} is not in 0 to 4"):
            check_labels("KD", torch.tensor([0, wrong, 2]), batch=3, classes=5)
