"""RKD: distances and angles against naive loops, and what neither may depend on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.engine.adapter import Batch
from limbeck.engine.distiller import Distiller
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.vision.methods.rkd import RKD, angles, relative_distances, rkd_angle_loss, rkd_distance_loss
from tests.vision.methods import conftest as common

LOSSES = pytest.mark.parametrize("loss", [rkd_distance_loss, rkd_angle_loss])


def distilled(link: dict[str, Any], *, student: dict[str, Any] | None = None, **kwargs: Any) -> Distiller:
    """A ResNet-14 of 8 channels teaches a ResNet-8 of 4 on 8×8 images of one channel and 5 classes."""
    shape = dict(in_chans=1, num_classes=5, input_size=(1, 8, 8))
    small = dict(type="CIFARResNet", depth=8, width=4, **shape)
    teacher = dict(type="CIFARResNet", depth=14, width=8, **shape)
    members = dict(
        teacher=dict(type="frozen", model=teacher, initial_weights=True),
        student=dict(type="trained", model=small if student is None else {**student, "student": small}),
    )
    return Distiller(members=members, links=[link], adapter=dict(type="VisionAdapter"), **kwargs).train()


def images(count: int = 8) -> Batch:
    ids = torch.arange(count)
    return Batch(common.randn(count, 1, 8, 8, seed=5), targets=ids % 5, ids=ids, views=torch.zeros_like(ids))


def smooth_l1(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def distances_by_loop(x: np.ndarray) -> list[list[float]]:
    d = [[math.sqrt(sum((a - b) ** 2 for a, b in zip(p, q))) for q in x] for p in x]
    positive = [v for row in d for v in row if v > 0]
    mean = sum(positive) / len(positive)
    return [[v / mean for v in row] for row in d]


def distance_reference(student: np.ndarray, teacher: np.ndarray) -> float:
    s, t = distances_by_loop(student), distances_by_loop(teacher)
    n = len(student)
    return sum(smooth_l1(s[i][j] - t[i][j]) for i in range(n) for j in range(n)) / n**2


def cosine(x: np.ndarray, i: int, j: int, k: int) -> float:
    a, b = x[j] - x[i], x[k] - x[i]
    lengths = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
    return float(a @ b) / lengths if lengths else 0.0


def angle_reference(student: np.ndarray, teacher: np.ndarray) -> float:
    n = len(student)
    total = 0.0
    for i in range(n):
        for j in range(n):
            for k in range(n):
                total += smooth_l1(cosine(student, i, j, k) - cosine(teacher, i, j, k))
    return total / n**3


def rotation(width: int, seed: int = 7) -> Tensor:
    return torch.linalg.qr(common.randn(width, width, seed=seed))[0]


@pytest.mark.parametrize(
    ("loss", "reference"), [(rkd_distance_loss, distance_reference), (rkd_angle_loss, angle_reference)]
)
def test_value_and_gradient_match_naive_reference(loss, reference) -> None:
    # Widths differ; the gradient by differences goes through μ as well.
    common.check_reference(loss, reference, common.randn(5, 3, seed=0), common.randn(5, 6, seed=1))


def test_distance_reaches_the_linear_part_of_smooth_l1() -> None:
    student = torch.tensor([[0.0], [0.1], [0.2], [40.0]])
    teacher = torch.tensor([[0.0], [9.0], [30.0], [31.0]])
    gap = (relative_distances(student) - relative_distances(teacher)).abs()
    assert gap.max() > 1 > gap.min()
    expected = distance_reference(common.array(student), common.array(teacher))
    assert rkd_distance_loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)


@LOSSES
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("change", [lambda x: x + 3.0, lambda x: x @ rotation(4), lambda x: 0.02 * x, lambda x: 50 * x])
def test_translation_rotation_and_scale_are_free(loss, side: int, change) -> None:
    features = [common.randn(6, 4, seed=0), common.randn(6, 4, seed=1)]
    expected = loss(*features)
    features[side] = change(features[side])
    torch.testing.assert_close(loss(*features), expected, rtol=1e-4, atol=1e-6)


@LOSSES
def test_similar_sets_cost_nothing_and_a_shear_does(loss) -> None:
    teacher = common.randn(6, 4)
    assert loss(3.0 * teacher @ rotation(4) - 2.0, teacher).item() < 1e-9
    assert loss(teacher * torch.tensor([5.0, 1.0, 1.0, 1.0]), teacher).item() > 1e-3


def test_angles_of_two_samples_are_the_same_everywhere() -> None:
    student, teacher = common.randn(2, 4, seed=0), common.randn(2, 3, seed=1)
    assert rkd_angle_loss(student, teacher).item() == pytest.approx(0.0, abs=1e-12)
    assert rkd_distance_loss(student, teacher).item() == pytest.approx(0.0, abs=1e-12)


def test_mean_distance_between_two_samples_is_one() -> None:
    psi = relative_distances(common.randn(5, 3))
    assert psi.sum().item() == pytest.approx(20)
    assert torch.equal(psi.diagonal(), torch.zeros(5))


def test_angles_of_a_right_isosceles_triangle() -> None:
    found = angles(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    assert found[0, 1, 2].item() == pytest.approx(0.0, abs=1e-7)
    assert found[1, 0, 2].item() == pytest.approx(math.sqrt(0.5))
    assert found[0, 1, 1].item() == pytest.approx(1.0)
    assert torch.equal(found[0, 0], torch.zeros(3))


@LOSSES
@pytest.mark.parametrize("rows", [[0, 0, 1, 2], [0, 0, 0, 0]])
def test_equal_samples_give_a_gradient_of_ordinary_size(loss, rows: list[int]) -> None:
    # Equal samples have no direction: the other pairs alone give the gradient, not 1e12 times a unit vector.
    student = common.randn(3, 4)[rows].requires_grad_()
    loss(student, common.randn(4, 5, seed=1)).backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert student.grad.abs().max() < 10


@LOSSES
def test_joint_order_of_samples_changes_nothing(loss) -> None:
    student, teacher = common.randn(5, 3, seed=0), common.randn(5, 4, seed=1)
    order = torch.tensor([2, 0, 4, 3, 1])
    torch.testing.assert_close(loss(student[order], teacher[order]), loss(student, teacher))
    assert not torch.isclose(loss(student[order], teacher), loss(student, teacher))


@LOSSES
def test_gradient_reaches_student_only(loss) -> None:
    common.check_one_sided(loss, common.randn(4, 3, seed=0), common.randn(4, 5, seed=1))


@LOSSES
@pytest.mark.parametrize("dtype", common.HALVES)
def test_autocast_keeps_float32_inside(loss, dtype: torch.dtype) -> None:
    # Squared distances of 300 overflow float16.
    common.check_half(loss, common.randn(5, 6, seed=0, scale=300), common.randn(5, 3, seed=1, scale=300), dtype)


@pytest.mark.parametrize(
    ("teacher", "student", "hint"),
    [
        ((4, 3), (5, 3), "of one batch would"),
        ((4, 3, 2, 2), (4, 3, 2, 2), r"pooled features \(B, D\)"),
        ((4, 3), (4, 3, 2, 2), "global_pool"),
        ((1, 3), (1, 5), "no relation within a batch of 1"),
    ],
)
def test_shapes_that_do_not_fit_are_named(teacher: tuple[int, ...], student: tuple[int, ...], hint: str) -> None:
    for call in (
        lambda: rkd_distance_loss(torch.zeros(student), torch.zeros(teacher)),
        lambda: rkd_angle_loss(torch.zeros(student), torch.zeros(teacher)),
        lambda: RKD().connect([teacher], [student]),
    ):
        with pytest.raises(ShapeMismatch, match=hint) as error:
            call()
        assert str(teacher) in str(error.value)
        assert str(student) in str(error.value)


def test_link_weighs_its_two_terms_and_adds_taps() -> None:
    students = [common.randn(4, 3, seed=0), common.randn(4, 5, seed=1)]
    teachers = [common.randn(4, 6, seed=2), common.randn(4, 7, seed=3)]
    link = METHODS.make({"type": "RKD", "taps": [["a", "a"], ["b", "b"]]})
    terms = link(common.link_inputs(students, teachers))
    pairs = list(zip(students, teachers))
    torch.testing.assert_close(terms["distance"], 25 * sum(rkd_distance_loss(s, t) for s, t in pairs))
    torch.testing.assert_close(terms["angle"], 50 * sum(rkd_angle_loss(s, t) for s, t in pairs))


def test_a_factor_of_zero_leaves_its_term_out() -> None:
    inputs = common.link_inputs(common.randn(4, 3), common.randn(4, 5))
    assert list(RKD(angle=0)(inputs)) == ["distance"]
    assert list(RKD(distance=0)(inputs)) == ["angle"]


def test_registry_builds_it_and_refuses_typos() -> None:
    common.check_registered("RKD", RKD, weight=1.0, typo="distanse", meant="distance", distance=10.0, angle=20.0)
    assert RKD().taps == [("global_pool", "global_pool")]


@pytest.mark.parametrize("factors", [(0, 0), (-1, 2), (1, float("nan"))])
def test_factors_without_a_loss_are_refused(factors: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="RKD needs distance and angle >= 0, one of them positive"):
        RKD(distance=factors[0], angle=factors[1])


def test_a_step_through_the_distiller_trains_the_student_by_both_terms() -> None:
    model = distilled(dict(type="RKD", weight=0.5))
    terms = model.loss(images())
    assert set(terms) == {"student.loss_ce", "rkd.loss_distance", "rkd.loss_angle"}
    teacher, student = (
        m.forward_head(m.forward_features(images().inputs), pre_logits=True)
        for m in (model.frozen["teacher"], model.deploy)
    )
    expected = 0.5 * 25 * rkd_distance_loss(student, teacher)
    torch.testing.assert_close(terms["rkd.loss_distance"], expected)
    (terms["rkd.loss_distance"] + terms["rkd.loss_angle"]).backward()
    assert model.deploy.conv1.weight.grad.abs().max() > 0
    assert model.deploy.fc.weight.grad is None
    assert all(p.grad is None for p in model.frozen["teacher"].parameters())
