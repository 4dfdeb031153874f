"""FitNet: the hint loss against a naive reference, its regressor, and how far down and up its gradient goes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from limbeck.engine.bridges import ConvBridge, GridBridge, PoolBridge
from limbeck.engine.registry import METHODS
from limbeck.engine.taps import tapped
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName
from limbeck.vision.methods.fitnet import FitNet, hint_loss
from tests.vision.methods import conftest as common


class Net(nn.Module):
    """Three stages; the hint is tapped in the middle."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer1 = nn.Conv2d(3, width, 3, padding=1)
        self.layer2 = nn.Conv2d(width, width, 3, padding=1)
        self.layer3 = nn.Conv2d(width, width, 3, padding=1)
        self.fc = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer3(self.layer2(self.layer1(x).relu()).relu()).mean((2, 3)))


def reference(student: np.ndarray, teacher: np.ndarray) -> float:
    total = 0.0
    for i in np.ndindex(*student.shape):
        total += (student[i] - teacher[i]) ** 2
    return total / student.size


def connected(teacher: tuple[int, ...], student: tuple[int, ...]) -> FitNet:
    torch.manual_seed(0)
    link = METHODS.make({"type": "FitNet"})
    link.connect([teacher], [student])
    return link


def make_identity(link: FitNet) -> None:
    """A 1×1 regressor that passes its input through: the identity, batch norm off, and ReLU on positive maps."""
    conv, norm, _ = link.bridges[0]
    nn.init.dirac_(conv.weight)
    nn.init.zeros_(conv.bias)
    norm.eps = 0.0
    norm.eval()  # running mean 0, variance 1


def test_value_and_gradient_match_naive_reference() -> None:
    common.check_reference(hint_loss, reference, common.randn(2, 3, 4, 2, seed=0), common.randn(2, 3, 4, 2, seed=1))


def test_gradient_is_twice_the_mean_difference() -> None:
    student, teacher = common.randn(2, 3, 4, 4, seed=0), common.randn(2, 3, 4, 4, seed=1)
    torch.testing.assert_close(
        common.gradient_of(hint_loss, student, teacher), 2 * (student - teacher) / student.numel()
    )


def test_zero_when_regressed_map_is_the_teachers() -> None:
    link = connected((2, 3, 8, 8), (2, 3, 8, 8))
    make_identity(link)
    teacher = common.randn(2, 3, 8, 8).relu()
    assert link(common.link_inputs(teacher.clone(), teacher))["hint"].item() == 0.0
    assert link(common.link_inputs(teacher + 0.5, teacher))["hint"].item() == pytest.approx(0.25)


@pytest.mark.parametrize(("student", "teacher"), [(8, 8), (16, 8), (8, 16), (10, 8)])
def test_regressor_gives_the_teachers_shape(student: int, teacher: int) -> None:
    link = connected((2, 6, teacher, teacher), (2, 4, student, student))
    assert link.bridges[0](torch.zeros(2, 4, student, student)).shape == (2, 6, teacher, teacher)


def test_gradient_reaches_below_the_hint_and_not_above() -> None:
    torch.manual_seed(0)
    teacher, student = Net(6), Net(4)
    link = connected((2, 6, 8, 8), (2, 4, 8, 8))
    x = common.randn(2, 3, 8, 8)
    with tapped(teacher, ["layer2"]) as t, tapped(student, ["layer2"]) as s:
        teacher(x)
        student(x)
    link(common.link_inputs(s["layer2"], t["layer2"]))["hint"].backward()
    reached = {name: p.grad is not None and bool(p.grad.abs().max() > 0) for name, p in student.named_parameters()}
    assert {name.split(".")[0] for name, hit in reached.items() if hit} == {"layer1", "layer2"}
    assert all(reached[f"{layer}.weight"] for layer in ("layer1", "layer2"))
    assert all(p.grad is None for p in teacher.parameters())
    assert all(
        p.grad is not None and p.grad.abs().max() > 0 for p in [link.bridges[0][0].weight, link.bridges[0][1].bias]
    )


def test_repeated_batch_keeps_the_loss_even_through_batch_norm() -> None:
    link = connected((3, 6, 4, 4), (3, 4, 4, 4))
    student, teacher = common.randn(3, 4, 4, 4, seed=0), common.randn(3, 6, 4, 4, seed=1)
    once = link(common.link_inputs(student, teacher))["hint"]
    twice = link(common.link_inputs(student.repeat(2, 1, 1, 1), teacher.repeat(2, 1, 1, 1)))["hint"]
    torch.testing.assert_close(twice, once)


def test_joint_order_of_samples_changes_nothing() -> None:
    student, teacher = common.randn(4, 3, 2, 2, seed=0), common.randn(4, 3, 2, 2, seed=1)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(hint_loss(student[order], teacher[order]), hint_loss(student, teacher))
    assert not torch.isclose(hint_loss(student[order], teacher), hint_loss(student, teacher))


def test_gradient_reaches_student_only() -> None:
    common.check_one_sided(hint_loss, common.randn(2, 3, 4, 4, seed=0), common.randn(2, 3, 4, 4, seed=1))


@pytest.mark.parametrize("dtype", common.HALVES)
def test_autocast_keeps_float32_inside(dtype: torch.dtype) -> None:
    # Differences of 300 overflow float16 when squared.
    common.check_half(
        hint_loss, common.randn(2, 3, 4, 4, scale=300), common.randn(2, 3, 4, 4, seed=1, scale=300), dtype
    )


def test_autocast_of_the_regressor_stays_close_to_float32() -> None:
    link = connected((4, 6, 4, 4), (4, 4, 4, 4))
    student, teacher = common.randn(4, 4, 4, 4, seed=0), common.randn(4, 6, 4, 4, seed=1)
    expected = link(common.link_inputs(student, teacher))["hint"].item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = link(common.link_inputs(student, teacher))["hint"]
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("teacher", "student", "hint"),
    [
        ((2, 6, 20, 20), (2, 4, 7, 7), "exactly half the teacher's 20×20"),
        ((2, 6, 8, 8), (3, 4, 8, 8), "the same batch"),
        ((2, 6, 8, 8), (2, 4), r"a vector \(B, D\) cannot be bridged to a map"),
        ((2, 6, 1, 1, 1), (2, 4, 8, 8), "tap layers of the same kind"),
    ],
)
def test_shapes_that_cannot_be_bridged_are_named(teacher: tuple[int, ...], student: tuple[int, ...], hint: str) -> None:
    with pytest.raises(ShapeMismatch, match=hint) as error:
        connected(teacher, student)
    assert str(teacher) in str(error.value)
    assert str(student) in str(error.value)


@pytest.mark.parametrize(
    ("teacher", "student", "bridge"),
    [((2, 17, 6), (2, 4, 8, 8), GridBridge), ((2, 6, 8, 8), (2, 17, 4), GridBridge), ((2, 6), (2, 17, 4), PoolBridge)],
)
def test_regressor_crosses_families(teacher: tuple[int, ...], student: tuple[int, ...], bridge: type) -> None:
    link = connected(teacher, student)
    assert type(link.bridges[0]) is bridge
    s, t = common.randn(*student).requires_grad_(), common.randn(*teacher, seed=1)
    hint = link(common.link_inputs(s, t))["hint"]
    patches = t[:, 1:] if len(teacher) == 3 else t  # a class token has no place in a map
    assert hint.item() == pytest.approx(reference(common.array(link.bridges[0](s)), common.array(patches)), rel=1e-4)
    assert torch.autograd.grad(hint, s)[0].abs().max() > 0


def test_maps_get_the_very_regressor_that_conv_bridge_draws() -> None:
    link = connected((2, 6, 4, 4), (2, 4, 8, 8))
    torch.manual_seed(0)
    expected = ConvBridge((2, 4, 8, 8), (2, 6, 4, 4)).state_dict()
    found = link.bridges[0].state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_layout_and_prefix_reach_the_bridge() -> None:
    link = FitNet(bridge=dict(teacher_layout="nhwc", student_prefix=2))
    link.connect([(2, 4, 4, 6)], [(2, 18, 5)])
    s, t = common.randn(2, 18, 5), common.randn(2, 4, 4, 6, seed=1)
    assert link.bridges[0](s).shape == t.shape
    assert link(common.link_inputs(s, t))["hint"] > 0


def test_bad_bridge_options_are_named() -> None:
    with pytest.raises(UnknownName, match=r"unknown bridge option 'student_perfix' of FitNet.*'student_prefix'"):
        FitNet(bridge=dict(student_perfix=1))
    with pytest.raises(ConfigError, match=r"FitNet: teacher tap: layout is 'nchw' or 'nhwc'; got 'hwc'"):
        FitNet(bridge=dict(teacher_layout="hwc")).connect([(2, 4, 4, 6)], [(2, 5, 4, 4)])
    with pytest.raises(ShapeMismatch, match=r"student tap: 6 tokens \(2, 6, 4\) make no square grid.*prefix tokens"):
        connected((2, 6, 8, 8), (2, 6, 4))


def test_loss_refuses_unequal_shapes() -> None:
    with pytest.raises(ShapeMismatch, match=r"teacher tap \(2, 6, 4, 4\) and student tap \(2, 4, 4, 4\)"):
        hint_loss(torch.zeros(2, 4, 4, 4), torch.zeros(2, 6, 4, 4))


def test_several_hints_have_a_regressor_each_and_add_up() -> None:
    torch.manual_seed(0)
    link = FitNet(taps=[("layer1", "layer1"), ("layer2", "layer2")])
    link.connect([(2, 6, 8, 8), (2, 8, 4, 4)], [(2, 4, 8, 8), (2, 5, 8, 8)])
    students = [common.randn(2, 4, 8, 8, seed=0), common.randn(2, 5, 8, 8, seed=1)]
    teachers = [common.randn(2, 6, 8, 8, seed=2), common.randn(2, 8, 4, 4, seed=3)]
    expected = sum(hint_loss(b(s), t) for b, s, t in zip(link.bridges, students, teachers))
    assert all(isinstance(bridge, ConvBridge) for bridge in link.bridges)
    torch.testing.assert_close(link(common.link_inputs(students, teachers))["hint"], expected)


def test_registry_builds_it_and_refuses_typos() -> None:
    common.check_registered("FitNet", FitNet, weight=100.0, typo="wieght", meant="weight")
    assert FitNet().taps == [("layer2", "layer2")]
