"""SPKD against a naive reference, its bounds, and its invariance to scale and orthogonal maps of the features."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.engine.registry import METHODS
from limbeck.errors import ShapeMismatch
from limbeck.vision.methods.spkd import SPKD, similarity, spkd_loss
from tests.vision.methods import conftest as common


def rows_of_similarity(x: np.ndarray) -> list[list[float]]:
    samples = [list(sample.ravel()) for sample in x]
    rows = []
    for a in samples:
        row = [sum(u * v for u, v in zip(a, b)) for b in samples]
        norm = math.sqrt(sum(g * g for g in row))
        rows.append([g / norm for g in row])
    return rows


def reference(student: np.ndarray, teacher: np.ndarray) -> float:
    total = 0.0
    for row_s, row_t in zip(rows_of_similarity(student), rows_of_similarity(teacher)):
        total += sum((a - b) ** 2 for a, b in zip(row_s, row_t))
    return total / len(student) ** 2


@pytest.mark.parametrize("teacher", [(4, 3, 2, 2), (4, 6, 3, 5), (4, 9), (4, 5, 7)])
def test_value_and_gradient_match_naive_reference_whatever_the_shapes(teacher: tuple[int, ...]) -> None:
    common.check_reference(spkd_loss, reference, common.randn(4, 3, 2, 2, seed=0), common.randn(*teacher, seed=1))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([-3.0, 0.01, 40.0]), st.sampled_from([0, 1]))
def test_scale_and_orthogonal_maps_of_features_are_free(seed: int, factor: float, side: int) -> None:
    features = [common.randn(5, 6, seed=seed), common.randn(5, 6, seed=seed + 1)]
    expected = spkd_loss(*features)
    rotation, _ = torch.linalg.qr(common.randn(6, 6, seed=seed + 2))
    features[side] = factor * features[side] @ rotation
    torch.testing.assert_close(spkd_loss(*features), expected, rtol=1e-3, atol=1e-6)


def test_a_map_that_is_not_orthogonal_counts() -> None:
    student, teacher = common.randn(5, 6, seed=0), common.randn(5, 6, seed=1)
    stretched = student * torch.tensor([5.0, 1.0, 1.0, 1.0, 1.0, 0.1])
    assert not torch.isclose(spkd_loss(stretched, teacher), spkd_loss(student, teacher), rtol=0.05)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 4))
def test_bounds(seed: int, batch: int, width: int) -> None:
    student, teacher = common.randn(batch, width, seed=seed), common.randn(batch, width, seed=seed + 1)
    assert 0.0 <= spkd_loss(student, teacher).item() <= 4 / batch + 1e-6
    assert spkd_loss(student.relu(), teacher.relu()).item() <= 2 / batch + 1e-6


def test_non_negative_bound_is_nearly_reached() -> None:
    # The student tells two samples apart, the teacher holds them equal: rows (1, 0) against (1, 1) / √2.
    loss = spkd_loss(torch.eye(2), torch.ones(2, 2)).item()
    assert loss == pytest.approx(2 * (2 - math.sqrt(2)) / 4)


def test_equal_features_cost_nothing() -> None:
    teacher = common.randn(4, 3, 2, 2)
    assert spkd_loss(teacher.clone(), teacher).item() == 0.0


def test_one_sample_costs_nothing() -> None:
    assert spkd_loss(common.randn(1, 3, 2, 2, seed=0), common.randn(1, 5, seed=1)).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("side", [0, 1])
def test_sample_of_zeros_has_a_row_of_zeros(side: int) -> None:
    features = [common.randn(4, 6, seed=0), common.randn(4, 6, seed=1)]
    features[side][2] = 0.0
    rows = similarity(features[side])
    assert torch.count_nonzero(rows[2]) == 0
    assert torch.count_nonzero(rows[:, 2]) == 0
    student = features[0].requires_grad_()
    loss = spkd_loss(student, features[1])
    loss.backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    # The zero row faces a unit row: it alone contributes 1 of the sum.
    others = similarity(features[0].detach()) - similarity(features[1])
    assert loss.item() * 16 == pytest.approx(1.0 + (others[[0, 1, 3]] ** 2).sum().item(), rel=1e-5)


def test_joint_order_of_samples_changes_nothing() -> None:
    student, teacher = common.randn(5, 6, seed=0), common.randn(5, 8, seed=1)
    order = torch.tensor([2, 4, 0, 3, 1])
    torch.testing.assert_close(spkd_loss(student[order], teacher[order]), spkd_loss(student, teacher))
    assert not torch.isclose(spkd_loss(student[order], teacher), spkd_loss(student, teacher))


@pytest.mark.parametrize("times", [2, 3])
def test_repeated_batch_divides_the_loss(times: int) -> None:
    # n² as many entries, each row's norm √n larger, over n² as many: 1 / n.
    student, teacher = common.randn(4, 6, seed=0), common.randn(4, 8, seed=1)
    repeated = spkd_loss(student.repeat(times, 1), teacher.repeat(times, 1))
    torch.testing.assert_close(repeated, spkd_loss(student, teacher) / times)


def test_gradient_reaches_student_only() -> None:
    common.check_one_sided(spkd_loss, common.randn(4, 3, 2, 2, seed=0), common.randn(4, 5, seed=1))


@pytest.mark.parametrize("dtype", common.HALVES)
def test_autocast_keeps_float32_inside(dtype: torch.dtype) -> None:
    # Inner products of 300s overflow float16, and bfloat16 products differ in the third digit.
    student, teacher = common.randn(4, 64, seed=0, scale=300), common.randn(4, 32, seed=1, scale=300)
    common.check_half(spkd_loss, student, teacher, dtype)


def test_autocast_does_not_touch_float32_features() -> None:
    student, teacher = common.randn(4, 64, seed=0), common.randn(4, 32, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(spkd_loss(student, teacher), spkd_loss(student.clone(), teacher))
        found = spkd_loss(student, teacher)
    torch.testing.assert_close(found, spkd_loss(student, teacher), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("teacher", "student"), [((4, 3, 2, 2), (5, 3, 2, 2)), ((4,), (4, 3)), ((4, 3), ())])
def test_shapes_that_do_not_fit_are_named(teacher: tuple[int, ...], student: tuple[int, ...]) -> None:
    for call in (
        lambda: spkd_loss(torch.zeros(student), torch.zeros(teacher)),
        lambda: SPKD().connect([teacher], [student]),
    ):
        with pytest.raises(ShapeMismatch, match=r"SPKD: .*; features \(B, …\) of one batch would") as error:
            call()
        assert f"teacher tap {teacher} and student tap {student}" in str(error.value)


def test_link_adds_the_losses_of_its_taps() -> None:
    students = [common.randn(4, 3, 2, 2, seed=0), common.randn(4, 6, seed=1)]
    teachers = [common.randn(4, 5, 3, 3, seed=2), common.randn(4, 7, seed=3)]
    link = METHODS.make({"type": "SPKD", "taps": [["layer3", "layer3"], ["global_pool", "global_pool"]]})
    link.connect([tuple(t.shape) for t in teachers], [tuple(s.shape) for s in students])
    terms = link(common.link_inputs(students, teachers))
    assert list(terms) == ["similarity"]
    torch.testing.assert_close(terms["similarity"], sum(spkd_loss(s, t) for s, t in zip(students, teachers)))


def test_registry_builds_it_and_refuses_typos() -> None:
    common.check_registered("SPKD", SPKD, weight=3000.0, typo="shedule", meant="schedule")
    assert SPKD().taps == [("layer3", "layer3")]
