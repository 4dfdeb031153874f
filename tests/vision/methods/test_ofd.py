"""OFD: the partial distance by cases, the margins against sampling, and where they come from in a teacher."""

from __future__ import annotations

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from limbeck.engine.registry import METHODS, MODELS
from limbeck.engine.taps import tapped
from limbeck.engine.weights import hash_state
from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.vision.methods.ofd import OFD, Connector, margins, norm_before, partial_l2_loss
from tests.vision.methods import conftest as common
from tests.vision.methods.test_rkd import distilled, images

MARGIN = torch.tensor([-0.3, -1.0, -2.0]).view(1, 3, 1, 1)


class Teacher(nn.Module):
    """One batch norm a tap."""

    def __init__(self, *channels: int) -> None:
        super().__init__()
        for i, c in enumerate(channels):
            norm = nn.BatchNorm2d(c)
            norm.bias.data.fill_(0.3 * i)
            setattr(self, f"bn{i}", norm)


def connected(teachers: list[tuple[int, ...]], students: list[tuple[int, ...]], **kwargs) -> OFD:
    torch.manual_seed(0)
    link = METHODS.make({"type": "OFD", "taps": [[f"bn{i}", "a"] for i in range(len(teachers))], **kwargs})
    link.members = {"teacher": Teacher(*(t[1] for t in teachers))}
    link.connect(teachers, students)
    return link


def make_identity(connector: nn.Module) -> None:
    nn.init.dirac_(connector[0].weight)
    connector[1].eps = 0.0
    connector.eval()  # running mean 0, variance 1


# --- the loss ---


def element(s: float, t: float, k: float) -> float:
    if t > 0:
        return (s - t) ** 2
    if t > k:
        return (s - t) ** 2 if s > t else 0.0
    return (s - k) ** 2 if s > k else 0.0


def reference(student: np.ndarray, teacher: np.ndarray) -> float:
    total = 0.0
    for b, c, y, x in np.ndindex(*student.shape):
        total += element(student[b, c, y, x], teacher[b, c, y, x], float(MARGIN[0, c, 0, 0]))
    return total / len(student)


def loss(student: Tensor, teacher: Tensor) -> Tensor:
    return partial_l2_loss(student, teacher, MARGIN)


def test_value_and_gradient_match_naive_reference() -> None:
    student, teacher = common.randn(4, 3, 3, 2, seed=0, scale=2), common.randn(4, 3, 3, 2, seed=1, scale=2)
    # All three branches are taken.
    assert {bool(v) for v in (teacher > 0).flatten()} == {True, False}
    assert bool(((teacher > MARGIN) & (teacher <= 0)).any() and (teacher <= MARGIN).any())
    common.check_reference(loss, reference, student, teacher)


@pytest.mark.parametrize(
    ("s", "t", "expected", "slope"),
    [
        (3.0, 2.0, 1.0, 2.0),
        (-3.0, 2.0, 25.0, -10.0),  # a positive target counts from both sides
        (0.5, -0.5, 1.0, 2.0),
        (-0.25, -0.5, 0.0625, 0.5),
        (-0.75, -0.5, 0.0, 0.0),  # S ≤ T ≤ 0 costs nothing
        (-9.0, -0.5, 0.0, 0.0),
        (0.5, -4.0, 2.25, 3.0),  # counts from the margin, not from the target
        (-0.5, -4.0, 0.25, 1.0),
        (-1.5, -4.0, 0.0, 0.0),  # below the margin is enough
        (-9.0, -4.0, 0.0, 0.0),
        (-0.5, 0.0, 0.0, 0.0),
    ],
)
def test_branches(s: float, t: float, expected: float, slope: float) -> None:
    student = torch.full((1, 1, 1, 1), s, requires_grad=True)
    found = partial_l2_loss(student, torch.full((1, 1, 1, 1), t), torch.full((1, 1, 1, 1), -1.0))
    found.backward()
    assert found.item() == pytest.approx(expected)
    assert student.grad is not None
    assert student.grad.item() == pytest.approx(slope)


def test_sum_over_elements_and_mean_over_samples() -> None:
    teacher = torch.zeros(2, 3, 4, 4)
    assert loss(teacher + 1, teacher).item() == pytest.approx(3 * 16)
    torch.testing.assert_close(loss(teacher.repeat(3, 1, 1, 1) + 1, teacher.repeat(3, 1, 1, 1)), torch.tensor(48.0))


def test_joint_order_of_samples_changes_nothing() -> None:
    student, teacher = common.randn(4, 3, 2, 2, seed=0), common.randn(4, 3, 2, 2, seed=1)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(loss(student[order], teacher[order]), loss(student, teacher))


def test_gradient_reaches_student_only() -> None:
    common.check_one_sided(loss, common.randn(2, 3, 4, 4, seed=0), common.randn(2, 3, 4, 4, seed=1))


@pytest.mark.parametrize("dtype", common.HALVES)
def test_autocast_keeps_float32_inside(dtype: torch.dtype) -> None:
    common.check_half(loss, common.randn(2, 3, 4, 4, scale=300), common.randn(2, 3, 4, 4, seed=1, scale=300), dtype)


@pytest.mark.parametrize(
    ("student", "margin", "hint"),
    [
        ((2, 4, 4, 4), (1, 3, 1, 1), "do not fit"),
        ((2, 3, 4, 4), (1, 1, 1, 1), "a margin"),
        ((2, 3, 4, 4), (3,), "a margin"),
    ],
)
def test_loss_refuses_shapes_that_would_broadcast(student, margin, hint: str) -> None:
    with pytest.raises(ShapeMismatch, match=hint):
        partial_l2_loss(torch.zeros(student), torch.zeros(2, 3, 4, 4), torch.zeros(margin))


# --- the margins ---


def test_margin_of_a_standard_normal() -> None:
    found = margins(torch.ones(2), torch.zeros(2))
    assert found.shape == (1, 2, 1, 1)
    torch.testing.assert_close(found.flatten(), torch.full((2,), -math.sqrt(2 / math.pi)))


@pytest.mark.parametrize(("m", "s"), [(0.5, 1.0), (-0.7, -0.4), (2.0, 1.5), (-5.0, 1.0), (0.02, 0.01)])
def test_margin_is_the_mean_of_the_negative_samples(m: float, s: float) -> None:
    samples = m + s * np.random.default_rng(0).standard_normal(400_000)
    negative = samples[samples < 0]
    found = margins(torch.tensor([s]), torch.tensor([m])).item()
    assert found == pytest.approx(negative.mean(), abs=5 * negative.std() / math.sqrt(len(negative)) + 1e-6)


def test_rare_negatives_have_three_deviations_and_the_switch_is_at_one_in_a_thousand() -> None:
    # Φ(−3.09) = 0.00100078, Φ(−3.091) = 0.00099742.
    either = margins(torch.tensor([2.0, 2.0]), 2 * torch.tensor([3.09, 3.091])).flatten()
    assert either[1].item() == pytest.approx(-6.0)
    assert -1.0 < either[0].item() < 0


def test_margin_is_negative_whatever_batch_norm_learnt() -> None:
    weight = torch.cat([common.randn(500, seed=0), torch.zeros(3), torch.full((2,), 1e-8)])
    bias = torch.cat([common.randn(500, seed=1, scale=4), torch.tensor([0.0, 1.0, -1.0]), torch.tensor([-3.0, 3.0])])
    found = margins(weight, bias)
    assert torch.isfinite(found).all()
    assert found.max() < 0


# --- which batch norm ---

CASES = [
    (dict(type="CIFARResNet", depth=14, width=4), "preact1", "layer1.1.bn2"),
    (dict(type="CIFARResNet", depth=14, width=4, shortcut="conv"), "layer2.0.preact", "layer2.0.bn2"),
    (dict(type="CIFARResNet50"), "preact2", "layer2.3.bn3"),
    (dict(type="WideResNet", depth=10, widen=1), "preact1", "layer2.0.bn1"),
    (dict(type="WideResNet", depth=10, widen=1), "preact3", "bn1"),
    (dict(type="CIFARVGG", depth=8), "preact2", "layer2.0.convs.2"),
    (dict(type="CIFARMobileNetV2"), "preact4", "layer4.3.project.1"),
    (dict(type="CIFARResNet", depth=8, width=4), "layer1.0.bn1", "layer1.0.bn1"),
]


@pytest.mark.parametrize(("model", "tap", "expected"), CASES)
def test_margins_come_from_the_last_batch_norm_before_the_tap(model: dict, tap: str, expected: str) -> None:
    built = MODELS.make(model).eval()
    found = norm_before(built, tap, built.get_submodule(expected).num_features)
    assert found is built.get_submodule(expected)
    with tapped(built, {tap, expected}) as store, torch.no_grad():
        built(common.randn(1, *built.input_size))
    assert store[tap].shape == store[expected].shape
    assert store[tap].min() < 0


@pytest.mark.parametrize("tap", ["layer1", "layer1.0.act2", "layer1.0.conv2", "nothing"])
def test_taps_that_no_batch_norm_precedes_are_refused(tap: str) -> None:
    link = OFD(taps=[[tap, "preact1"]])
    link.members = {"teacher": MODELS.make(dict(type="CIFARResNet", depth=8, width=4))}
    with pytest.raises(ConfigError, match=rf"no affine batch norm of 4 channels right before teacher tap '{tap}'"):
        link.connect([(2, 4, 8, 8)], [(2, 4, 8, 8)])


@pytest.mark.parametrize("model", [dict(type="CIFARResNet", depth=8, width=4), dict(type="WideResNet", depth=10)])
def test_the_last_map_after_its_relu_is_refused(model: dict) -> None:
    built = MODELS.make(model)
    assert norm_before(built, "preact3", built.num_features) is not None
    assert norm_before(built, "features", built.num_features) is None


def test_named_norms_are_taken_and_checked() -> None:
    teacher = MODELS.make(dict(type="CIFARResNet", depth=8, width=4))
    teacher.layer1[0].bn1.bias.data.fill_(-1.0)
    link = OFD(taps=[["layer1", "layer1"]], norms=["layer1.0.bn1"])
    link.members = {"teacher": teacher}
    link.connect([(2, 4, 8, 8)], [(2, 4, 8, 8)])
    torch.testing.assert_close(link.margin0, margins(torch.ones(4), -torch.ones(4)))
    for name in ("layer1.0.conv1", "layer2.0.bn1", "layer9"):
        wrong = OFD(taps=[["layer1", "layer1"]], norms=[name])
        wrong.members = {"teacher": teacher}
        with pytest.raises(ConfigError, match=f"no affine batch norm of 4 channels '{name}' of the teacher"):
            wrong.connect([(2, 4, 8, 8)], [(2, 4, 8, 8)])
    with pytest.raises(ConfigError, match="one of norms for each of its 3 taps"):
        OFD(norms=["bn1"])


# --- the link ---


def test_last_stage_counts_fully_and_the_one_before_half() -> None:
    shapes = [(2, 3, 4, 4), (2, 3, 4, 4), (2, 3, 4, 4)]
    link = connected(shapes, shapes)
    for connector in link.connectors:
        make_identity(connector)
    teacher = common.randn(2, 3, 4, 4).relu() + 0.1
    for stage, share in enumerate((0.25, 0.5, 1.0)):
        students = [teacher.clone() for _ in range(3)]
        students[stage] = teacher + 1
        found = link(common.link_inputs(students, [teacher] * 3))["partial"]
        assert found.item() == pytest.approx(share * 3 * 16, rel=1e-5)


def test_connector_is_a_convolution_of_the_teachers_scale_and_batch_norm() -> None:
    torch.manual_seed(0)
    connector = Connector(200, 50)
    assert [tuple(p.shape) for p in connector.parameters()] == [(50, 200, 1, 1), (50,), (50,)]
    assert connector[0].weight.std().item() == pytest.approx(math.sqrt(2 / 50), rel=0.02)
    assert torch.equal(connector[1].weight, torch.ones(50))


@pytest.mark.parametrize(("teacher", "student"), [(8, 4), (6, 4), (4, 4), (4, 8)])
def test_teacher_is_pooled_to_the_students_size(teacher: int, student: int) -> None:
    link = connected([(2, 5, teacher, teacher)], [(2, 3, student, student)])
    s, t = common.randn(2, 3, student, student, seed=0), common.randn(2, 5, teacher, teacher, seed=1)
    pooled = nn.AdaptiveAvgPool2d(student)(t)
    expected = partial_l2_loss(link.connectors[0](s), pooled, margins(torch.ones(5), torch.zeros(5)))
    torch.testing.assert_close(link(common.link_inputs(s, t))["partial"], expected)


def test_gradient_reaches_student_and_connector_and_not_the_teacher() -> None:
    link = connected([(2, 5, 4, 4)], [(2, 3, 4, 4)])
    student = common.randn(2, 3, 4, 4).requires_grad_()
    teacher = common.randn(2, 5, 4, 4, seed=1).requires_grad_()
    link(common.link_inputs(student, teacher))["partial"].backward()
    assert teacher.grad is None
    for leaf in (student, *link.parameters()):
        assert leaf.grad is not None
        assert leaf.grad.abs().max() > 0
    assert set(link.state_dict()) - {"margin0"} == {f"connectors.0.{k}" for k in link.connectors[0].state_dict()}


@pytest.mark.parametrize("dtype", common.HALVES)
def test_link_takes_half_precision_taps(dtype: torch.dtype) -> None:
    link = connected([(2, 5, 8, 8)], [(2, 3, 4, 4)])
    s, t = common.randn(2, 3, 4, 4, seed=0).to(dtype), common.randn(2, 5, 8, 8, seed=1).to(dtype)
    expected = link(common.link_inputs(s.float(), t.float()))["partial"]
    torch.testing.assert_close(link(common.link_inputs(s, t))["partial"], expected)


@pytest.mark.parametrize(
    ("teacher", "student"), [((2, 6, 8, 8), (3, 4, 8, 8)), ((2, 6), (2, 4, 8, 8)), ((2, 6), (2, 4))]
)
def test_taps_that_are_no_maps_are_named(teacher: tuple[int, ...], student: tuple[int, ...]) -> None:
    with pytest.raises(ShapeMismatch, match=r"maps \(B, C, H, W\) of one batch") as error:
        connected([teacher], [student])
    assert str(teacher) in str(error.value)
    assert str(student) in str(error.value)


def test_registry_builds_it_and_refuses_typos() -> None:
    common.check_registered("OFD", OFD, weight=1e-3, typo="normss", meant="norms", norms=["layer1.0.bn2"])
    assert OFD().taps == [(f"preact{i}", f"preact{i}") for i in (1, 2, 3)]
    assert OFD().teacher_train_bn is False


# --- through the engine ---


def test_a_step_through_the_distiller_reads_maps_before_their_relu() -> None:
    model = distilled(dict(type="OFD"))
    seen = {}
    handle = model.links[0].register_forward_hook(lambda m, args, out: seen.update(taps=args[0]))
    terms = model.loss(images())
    handle.remove()
    students, teachers = seen["taps"].student, seen["taps"].teacher
    assert all(bool(x.min() < 0) for x in (*students, *teachers))
    link, norms = model.links[0], [model.frozen["teacher"].get_submodule(f"layer{i}.1.bn2") for i in (1, 2, 3)]
    expected = sum(
        share * partial_l2_loss(connector(s), t, margins(norm.weight, norm.bias))
        for share, connector, s, t, norm in zip((0.25, 0.5, 1.0), link.connectors, students, teachers, norms)
    )
    torch.testing.assert_close(terms["ofd.loss_partial"], 1e-3 * expected)
    terms["ofd.loss_partial"].backward()
    assert model.deploy.conv1.weight.grad.abs().max() > 0
    assert model.deploy.fc.weight.grad is None
    assert all(p.grad is None for p in model.frozen["teacher"].parameters())


def test_teacher_train_bn_uses_the_batchs_statistics_and_keeps_the_teacher() -> None:
    model = distilled(dict(type="OFD", teacher_train_bn=True))
    teacher = model.frozen["teacher"]
    before = hash_state(teacher.state_dict())
    found = model.loss(images())["ofd.loss_partial"]
    assert hash_state(teacher.state_dict()) == before
    assert not any(m.training for m in teacher.modules())
    # A copy in train mode gives the targets.
    copy, names = deepcopy(teacher).train(), ["preact1", "preact2", "preact3"]
    with tapped(copy, names) as targets, torch.no_grad():
        copy(images().inputs)
    with tapped(model.deploy, names) as own:
        model.deploy(images().inputs)
    expected = sum(
        share * partial_l2_loss(connector(own[n]), targets[n], model.links[0].get_buffer(f"margin{i}"))
        for i, (share, connector, n) in enumerate(zip((0.25, 0.5, 1.0), model.links[0].connectors, names))
    )
    torch.testing.assert_close(found, 1e-3 * expected)
    assert not torch.isclose(distilled(dict(type="OFD")).loss(images())["ofd.loss_partial"], found)


def test_teacher_train_bn_outside_a_run_is_refused() -> None:
    link = connected([(2, 5, 4, 4)], [(2, 3, 4, 4)], teacher_train_bn=True)
    with pytest.raises(ConfigError, match="OFD with teacher_train_bn runs the teacher again"):
        link(common.link_inputs(common.randn(2, 3, 4, 4), common.randn(2, 5, 4, 4)))
