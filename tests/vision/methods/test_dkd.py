"""DKD against a naive reference, the decomposition of KD, and its official warm-up."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.vision.methods.dkd import DKD, dkd_loss, dkd_terms
from limbeck.vision.methods.kd import kd_loss
from tests.vision.methods import conftest as common

LABELS = torch.tensor([0, 3, 6, 2, 2])


def example(batch: int = 5, classes: int = 7, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    return common.randn(batch, classes, seed=0, scale=scale), common.randn(batch, classes, seed=1, scale=scale)


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q))


def reference_terms(
    student: np.ndarray, teacher: np.ndarray, labels: list[int], temperature: float
) -> tuple[float, float]:
    target = others = 0.0
    for z_s, z_t, y in zip(student, teacher, labels):
        s, t = common.softmax(z_s / temperature), common.softmax(z_t / temperature)
        rest_s, rest_t = ([v for c, v in enumerate(p) if c != y] for p in (s, t))
        target += kl([t[y], sum(rest_t)], [s[y], sum(rest_s)])
        others += kl([v / sum(rest_t) for v in rest_t], [v / sum(rest_s) for v in rest_s])
    scale = temperature**2 / len(labels)
    return scale * target, scale * others


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 8.0), (1.0, 0.0), (0.0, 1.0), (0.5, 2.0)])
def test_value_and_gradient_match_naive_reference(alpha: float, beta: float, temperature: float) -> None:
    def loss(s: Tensor, t: Tensor) -> Tensor:
        return dkd_loss(s, t, labels=LABELS, alpha=alpha, beta=beta, temperature=temperature)

    def reference(s: np.ndarray, t: np.ndarray) -> float:
        target, others = reference_terms(s, t, LABELS.tolist(), temperature)
        return alpha * target + beta * others

    common.check_reference(loss, reference, *example())


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(2, 8), st.sampled_from([1.0, 2.0, 4.0]))
def test_kd_is_target_part_plus_weighted_other_part(seed: int, batch: int, classes: int, temperature: float) -> None:
    student, teacher = common.randn(batch, classes, seed=seed), common.randn(batch, classes, seed=seed + 1)
    labels = torch.arange(batch) % classes
    total = torch.zeros(())
    for i in range(batch):  # 1 − p_y weighs each sample's own part
        target, others = dkd_terms(
            student[i : i + 1], teacher[i : i + 1], labels=labels[i : i + 1], temperature=temperature
        )
        p_y = (teacher[i] / temperature).softmax(0)[labels[i]]
        total = total + target + (1 - p_y) * others
    expected = kd_loss(student, teacher, temperature=temperature)
    torch.testing.assert_close(total / batch, expected, rtol=1e-4, atol=1e-5)


def test_equal_logits_cost_nothing() -> None:
    student, _ = example()
    target, others = dkd_terms(student.clone(), student, labels=LABELS)
    assert abs(target.item()) < 1e-6
    assert abs(others.item()) < 1e-6


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_both_parts_are_never_negative(seed: int) -> None:
    student, teacher = common.randn(5, 7, seed=seed, scale=6), common.randn(5, 7, seed=seed + 1, scale=6)
    target, others = dkd_terms(student, teacher, labels=LABELS, temperature=1.0)
    assert target.item() >= -1e-5
    assert others.item() >= -1e-5


@pytest.mark.parametrize("side", [0, 1])
def test_shift_of_a_sample_changes_nothing(side: int) -> None:
    logits = list(example())
    expected = dkd_loss(*logits, labels=LABELS)
    logits[side] = logits[side] + torch.tensor([5.0, -3.0, 0.5, 20.0, -11.0]).unsqueeze(1)
    torch.testing.assert_close(dkd_loss(*logits, labels=LABELS), expected, rtol=1e-4, atol=1e-5)


def test_other_part_does_not_see_target_logits() -> None:
    student, teacher = example()
    expected = dkd_terms(student, teacher, labels=LABELS)
    rows = torch.arange(5)
    for side in (0, 1):
        changed = [student.clone(), teacher.clone()]
        changed[side][rows, LABELS] += torch.tensor([9.0, -9.0, 2.0, 30.0, -1.0])
        target, others = dkd_terms(changed[0], changed[1], labels=LABELS)
        assert torch.equal(others, expected[1])
        assert not torch.isclose(target, expected[0])
    slope = common.gradient_of(lambda s, t: dkd_terms(s, t, labels=LABELS)[1], student, teacher)
    assert torch.equal(slope[rows, LABELS], torch.zeros(5))
    assert torch.count_nonzero(slope) == 5 * 6


def test_two_classes_have_no_other_part() -> None:
    student, teacher = example(batch=4, classes=2)
    labels = torch.tensor([0, 1, 1, 0])
    target, others = dkd_terms(student, teacher, labels=labels, temperature=1.0)
    assert others.item() == 0.0
    torch.testing.assert_close(target, kd_loss(student, teacher, temperature=1.0))
    slope = common.gradient_of(lambda s, t: dkd_terms(s, t, labels=labels)[1], student, teacher)
    assert torch.count_nonzero(slope) == 0


def test_sure_student_gives_the_finite_limit() -> None:
    # log(1 − p_y) is −1000 + log 2; a sum of probabilities would underflow to log 0.
    student = torch.tensor([[1000.0, 0.0, 0.0]], requires_grad=True)
    loss, _ = dkd_terms(student, torch.zeros(1, 3), labels=torch.tensor([0]), temperature=1.0)
    expected = math.log(1 / 3) / 3 + 2 / 3 * (math.log(2 / 3) + 1000 - math.log(2))
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    assert student.grad is not None
    torch.testing.assert_close(student.grad, torch.tensor([[2 / 3, -1 / 3, -1 / 3]]), rtol=1e-4, atol=0)


def test_agrees_with_the_official_way_of_hiding_the_target() -> None:
    student, teacher = example()
    hide = 1000.0 * torch.nn.functional.one_hot(LABELS, 7)
    q, p = ((z / 4.0 - hide).log_softmax(1) for z in (student, teacher))
    official = 16.0 * (p.exp() * (p - q)).sum() / 5
    torch.testing.assert_close(dkd_terms(student, teacher, labels=LABELS)[1], official, rtol=1e-4, atol=1e-5)


def test_joint_order_of_samples_or_classes_changes_nothing() -> None:
    student, teacher = example()
    order, classes = torch.tensor([4, 2, 0, 1, 3]), torch.tensor([3, 0, 6, 1, 5, 2, 4])
    expected = dkd_loss(student, teacher, labels=LABELS)
    torch.testing.assert_close(dkd_loss(student[order], teacher[order], labels=LABELS[order]), expected)
    moved = classes.argsort()[LABELS]
    torch.testing.assert_close(dkd_loss(student[:, classes], teacher[:, classes], labels=moved), expected)
    assert not torch.isclose(dkd_loss(student, teacher, labels=LABELS[order]), expected)


def test_repeated_batch_keeps_the_loss() -> None:
    student, teacher = example()
    twice = dkd_loss(student.repeat(2, 1), teacher.repeat(2, 1), labels=LABELS.repeat(2))
    torch.testing.assert_close(twice, dkd_loss(student, teacher, labels=LABELS))


def test_gradient_reaches_student_only() -> None:
    common.check_one_sided(lambda s, t: dkd_loss(s, t, labels=LABELS), *example())


@pytest.mark.parametrize("dtype", common.HALVES)
def test_autocast_keeps_float32_inside(dtype: torch.dtype) -> None:
    common.check_half(lambda s, t: dkd_loss(s, t, labels=LABELS), *example(classes=100, scale=5.0), dtype)


@pytest.mark.parametrize(
    ("teacher", "student", "hint"),
    [
        ((5, 100), (5, 7), "a student head of 100 classes"),
        ((6, 7), (5, 7), "the same batch"),
        ((5, 7, 2, 2), (5, 7, 2, 2), r"tap logits \(B, C\)"),
    ],
)
def test_logits_that_do_not_fit_are_named(teacher: tuple[int, ...], student: tuple[int, ...], hint: str) -> None:
    pattern = rf"DKD: teacher logits \({', '.join(map(str, teacher))}\) and student logits .*; .*{hint}"
    with pytest.raises(ShapeMismatch, match=pattern):
        dkd_loss(torch.zeros(student), torch.zeros(teacher), labels=LABELS)
    with pytest.raises(ShapeMismatch, match=pattern):
        DKD().connect([teacher], [student])


@pytest.mark.parametrize("labels", [LABELS[:4], torch.full((5, 7), 1 / 7), torch.zeros(5)])
def test_labels_that_do_not_fit_are_named(labels: Tensor) -> None:
    with pytest.raises(ShapeMismatch, match=r"DKD: labels .* do not fit a batch of 5; integer classes \(5,\) would"):
        dkd_loss(*example(), labels=labels)


@pytest.mark.parametrize("label", [-1, 7])
def test_labels_out_of_range_are_named(label: int) -> None:
    with pytest.raises(ShapeMismatch, match=f"DKD: label {label} is not in 0 to 6"):
        dkd_loss(*example(), labels=torch.tensor([0, 1, label, 2, 3]))


def test_one_class_is_refused() -> None:
    with pytest.raises(ShapeMismatch, match=r"DKD: teacher logits \(5, 1\) .* two or more would fit"):
        DKD().connect([(5, 1)], [(5, 1)])
    with pytest.raises(ShapeMismatch, match=r"DKD: teacher logits \(5, 1\) .* two or more would fit"):
        dkd_loss(torch.zeros(5, 1), torch.zeros(5, 1), labels=torch.zeros(5, dtype=torch.long))


def test_link_gives_the_pure_loss_with_its_options() -> None:
    student, teacher = example()
    link = METHODS.make({"type": "DKD", "alpha": 0.5, "beta": 2.0, "temperature": 3.0})
    link.connect([(5, 7)], [(5, 7)])
    terms = link(common.link_inputs(student, teacher, LABELS))
    assert list(terms) == ["dkd"]
    expected = dkd_loss(student, teacher, labels=LABELS, alpha=0.5, beta=2.0, temperature=3.0)
    torch.testing.assert_close(terms["dkd"], expected)


def test_official_warm_up_is_a_twentieth_in_epoch_one_and_full_from_twenty() -> None:
    link = METHODS.make({"type": "DKD", "schedule": {"type": "epochs", "warmup_epochs": 20, "total_epochs": 240}})
    factors = [link.factor(epoch / 240) for epoch in range(240)]
    assert factors[:3] == pytest.approx([1 / 20, 2 / 20, 3 / 20])
    assert factors[18] == pytest.approx(19 / 20)
    assert factors[19:] == [1.0] * 221


def test_registry_builds_it_and_refuses_typos() -> None:
    common.check_registered("DKD", DKD, weight=1.0, typo="betta", meant="beta", alpha=2.0, beta=0.5, temperature=1.0)
    link = DKD()
    assert (link.alpha, link.beta, link.temperature, link.taps) == (1.0, 8.0, 4.0, [("logits", "logits")])


def test_temperature_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="DKD needs temperature > 0; got 0"):
        DKD(temperature=0)


def test_standardised_link_is_the_loss_of_standardised_logits() -> None:
    student, teacher = example()
    z_s, z_t = (
        (z - z.mean(1, keepdims=True)) / z.std(1, ddof=1, keepdims=True) for z in map(common.array, (student, teacher))
    )
    target, others = reference_terms(z_s, z_t, LABELS.tolist(), 2.0)
    link = METHODS.make({"type": "DKD", "standardise": True, "beta": 6.0, "temperature": 2.0})
    found = link(common.link_inputs(student, teacher, LABELS))["dkd"]
    assert found.item() == pytest.approx(target + 6.0 * others, rel=1e-5)
    moved = link(common.link_inputs(3.0 * student - 1.0, 0.5 * teacher + 2.0, LABELS))["dkd"]
    torch.testing.assert_close(moved, found, rtol=1e-4, atol=1e-6)


def test_default_link_is_the_unstandardised_loss_bit_for_bit() -> None:
    student, teacher = example()
    found = DKD()(common.link_inputs(student, teacher, LABELS))["dkd"]
    assert torch.equal(found, dkd_loss(student, teacher, labels=LABELS))
