"""MEALV2: soft labels, the discriminator's quirks, and that it has its own optimiser and stays out of the student."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.engine.adapter import Batch
from limbeck.engine.config import RecipeConfig
from limbeck.engine.distiller import Distiller
from limbeck.engine.method import LinkInputs
from limbeck.engine.runner import JointOptimWrapper, build_optim_wrapper
from limbeck.errors import ShapeMismatch, UnknownName
from limbeck.vision.methods.kd import kd_loss
from limbeck.vision.methods.meal import (
    MEALV2,
    Discriminator,
    discriminator_loss,
    mean_logits,
    soft_label_loss,
    soft_labels,
)
from tests.vision.methods import conftest as common

STUDENT = common.randn(5, 7, seed=0, scale=3)
TEACHERS = [common.randn(5, 7, seed=1 + k, scale=3) for k in range(3)]


def inputs(student: Tensor = STUDENT, teachers: list[Tensor] = TEACHERS, targets: Tensor | None = None) -> LinkInputs:
    return LinkInputs(student=[student], teacher=[teachers[0]], teachers=[[t] for t in teachers], targets=targets)


def make(adversary: str = "code", classes: int = 7, seed: int = 0) -> MEALV2:
    torch.manual_seed(seed)
    link = MEALV2(teacher=["a", "b", "c"], adversary=adversary)
    link.connect([(2, classes)], [(2, classes)])
    return link


# --- soft labels ---


def reference(student: np.ndarray, teachers: list[np.ndarray]) -> float:
    total = 0.0
    for i, row in enumerate(student):
        rows = [common.softmax(t[i]) for t in teachers]
        p = [sum(column) / len(rows) for column in zip(*rows)]
        total -= sum(a * math.log(b) for a, b in zip(p, common.softmax(row)))
    return total / len(student)


def test_soft_loss_and_gradient_match_naive_reference() -> None:
    common.check_reference(
        lambda s, t: soft_label_loss(s, [t, *TEACHERS]),
        lambda s, t: reference(s, [t, *map(common.array, TEACHERS)]),
        STUDENT,
        common.randn(5, 7, seed=9, scale=3),
    )


def test_one_teacher_is_kd_at_temperature_one_plus_its_entropy() -> None:
    p = TEACHERS[0].softmax(1)
    entropy = -(p * p.log()).sum(1).mean()
    torch.testing.assert_close(
        soft_label_loss(STUDENT, TEACHERS[:1]), kd_loss(STUDENT, TEACHERS[0], temperature=1.0) + entropy
    )
    torch.testing.assert_close(soft_label_loss(TEACHERS[0], TEACHERS[:1]), entropy)
    slope = common.gradient_of(lambda s, t: soft_label_loss(s, [t]), TEACHERS[0], TEACHERS[0])
    torch.testing.assert_close(slope, torch.zeros(5, 7), rtol=0, atol=1e-7)


def test_soft_labels_sum_to_one_and_are_not_the_softmax_of_the_mean_logits() -> None:
    p = soft_labels(TEACHERS)
    torch.testing.assert_close(p.sum(1), torch.ones(5))
    assert (p - mean_logits(TEACHERS).softmax(1)).abs().max() > 0.05
    np.testing.assert_allclose(
        mean_logits(TEACHERS).numpy(), sum(map(common.array, TEACHERS)) / 3, rtol=1e-5, atol=1e-6
    )


# --- the discriminator ---


def test_discriminator_loss_matches_naive_reference() -> None:
    s, t = common.randn(4, 2, seed=0), common.randn(4, 2, seed=1)
    total = 0.0
    for rows, target in ((common.array(s), (1, 0)), (common.array(t), (0, 1))):
        for row in rows:
            for x, y in zip(row, target):
                q = 1 / (1 + math.exp(-x))
                total -= y * math.log(q) + (1 - y) * math.log(1 - q)
    assert discriminator_loss(s, t).item() == pytest.approx(total / 16, rel=1e-5)


def test_swapped_roles_swap_the_targets() -> None:
    s, t = common.randn(4, 2, seed=0), common.randn(4, 2, seed=1)
    torch.testing.assert_close(discriminator_loss(t.flip(1), s.flip(1)), discriminator_loss(s, t))
    assert not torch.isclose(discriminator_loss(t, s), discriminator_loss(s, t))


def test_last_relu_bounds_the_loss_and_zeros_give_log_two() -> None:
    perfect = torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 50.0]])
    assert discriminator_loss(*perfect).item() == pytest.approx(math.log(2) / 2)
    zeros = torch.zeros(3, 2)
    assert discriminator_loss(zeros, zeros).item() == pytest.approx(math.log(2))
    for seed in range(5):
        assert make(seed=seed)(inputs())["discriminator"].item() >= math.log(2) / 2


@pytest.mark.parametrize(
    ("classes", "widths"), [(1000, [125, 15, 2]), (100, [12, 4, 2]), (10, [4, 4, 2]), (2, [4, 4, 2])]
)
def test_widths_follow_the_classes_with_a_floor(classes: int, widths: list[int]) -> None:
    layers = [m for m in Discriminator(classes) if isinstance(m, torch.nn.Linear)]
    assert [m.out_features for m in layers] == widths
    assert layers[0].in_features == classes
    assert all(m.bias is not None for m in layers)
    assert (Discriminator(classes)(common.randn(6, classes)) >= 0).all()


@pytest.mark.parametrize("classes", [3, 10, 100])
def test_no_seed_draws_a_dead_discriminator(classes: int) -> None:
    for seed in range(30):
        link = make(seed=seed, classes=classes)
        student = (0.1 * common.randn(8, classes, seed=seed)).requires_grad_()  # a new student's logits are small
        loss = link(inputs(student, [3 * common.randn(8, classes, seed=99)]))["discriminator"]
        assert torch.autograd.grad(loss, student)[0].abs().max() > 0


def test_reversal_turns_the_students_gradient_and_no_other() -> None:
    grads = {}
    for adversary in ("code", "reversal"):
        link, student = make(adversary), STUDENT.clone().requires_grad_()
        loss = link(inputs(student))["discriminator"]
        grads[adversary] = torch.autograd.grad(loss, [student, *link.discriminator.parameters()])
    assert grads["code"][0].abs().max() > 0
    assert torch.equal(grads["code"][0], -grads["reversal"][0])
    assert all(torch.equal(a, b) for a, b in zip(grads["code"][1:], grads["reversal"][1:]))


def test_code_gradient_matches_central_differences() -> None:
    link, student = make(), STUDENT.clone().requires_grad_()
    found = torch.autograd.grad(link(inputs(student))["discriminator"], student)[0]
    layers = [
        (common.array(m.weight), common.array(m.bias)) for m in link.discriminator if isinstance(m, torch.nn.Linear)
    ]
    mean = sum(map(common.array, TEACHERS)) / 3

    def value(z: np.ndarray) -> float:
        total = 0.0
        for rows, target in ((z, (1, 0)), (mean, (0, 1))):
            for row in rows:
                for weight, bias in layers:
                    row = np.maximum(weight @ row + bias, 0)
                total += sum(math.log1p(math.exp(x)) - y * x for x, y in zip(row, target))
        return total / (4 * len(z))

    slope = common.numeric_gradient(value, common.array(student))
    np.testing.assert_allclose(found.numpy(), slope, rtol=1e-3, atol=1e-4 * np.abs(slope).max())


# --- the link ---


def test_off_leaves_the_soft_loss_and_no_parameters() -> None:
    link = make("off")
    assert list(link(inputs())) == ["soft"]
    assert not list(link.parameters())
    torch.testing.assert_close(link(inputs())["soft"], make()(inputs())["soft"])


def test_labels_and_the_order_of_teachers_change_nothing_and_copies_equal_one() -> None:
    link = make()
    expected = link(inputs(targets=torch.arange(5)))
    for other in (inputs(targets=torch.arange(5).flip(0)), inputs(teachers=TEACHERS[::-1])):
        torch.testing.assert_close(link(other), expected)
    torch.testing.assert_close(link(inputs(teachers=TEACHERS[:1] * 4)), link(inputs(teachers=TEACHERS[:1])))


@pytest.mark.parametrize("term", ["soft", "discriminator"])
def test_gradient_reaches_student_and_no_teacher(term: str) -> None:
    link = make()
    common.check_one_sided(lambda s, t: link(inputs(s, [t, *TEACHERS]))[term], STUDENT, TEACHERS[0])


@pytest.mark.parametrize("dtype", common.HALVES)
@pytest.mark.parametrize("term", ["soft", "discriminator"])
def test_half_precision_is_computed_in_float32(term: str, dtype: torch.dtype) -> None:
    link = make()
    common.check_half(lambda s, t: link(inputs(s, [t, t.flip(0)]))[term], STUDENT, TEACHERS[0], dtype)


def test_teacher_that_does_not_fit_is_named() -> None:
    link = MEALV2(teacher=["a", "b"])
    link.shapes = {"a": [(2, 10)], "b": [(2, 12)]}
    with pytest.raises(ShapeMismatch, match=r"MEALV2: teacher logits \(2, 12\).*\(teacher 'b'\)"):
        link.connect([(2, 10)], [(2, 10)])


def test_registry_builds_it_and_refuses_typos() -> None:
    common.check_registered("MEALV2", MEALV2, weight=1.0, typo="adversry", meant="adversary", adversary="off")
    assert MEALV2().adversary == "code"
    with pytest.raises(UnknownName, match="unknown adversary 'reverse' of MEALV2; did you mean 'reversal'"):
        MEALV2(adversary="reverse")


def distiller(**link: Any) -> Distiller:
    net = dict(type="CIFARResNet", depth=8, in_chans=1, num_classes=3, input_size=(1, 8, 8))
    members = {
        n: dict(type="frozen", model={**net, "width": w}, initial_weights=True) for n, w in dict(a=4, b=3).items()
    }
    members["student"] = dict(type="trained", model={**net, "width": 2})
    link = dict(type="MEALV2", teacher=["a", "b"], **link)
    return Distiller(members=members, links=[link], adapter=dict(type="VisionAdapter"), task_weight=0.0)


@pytest.mark.parametrize("adversary", ["code", "reversal"])
def test_discriminator_has_its_own_optimiser_and_never_reaches_the_student(adversary: str) -> None:
    model = distiller(adversary=adversary).train()
    recipe = RecipeConfig(epochs=1, optimizer=dict(type="SGD", lr=0.05))
    wrapper = build_optim_wrapper(model, model.links, recipe)
    assert isinstance(wrapper, JointOptimWrapper)
    link = model.links[0]
    assert isinstance(link, MEALV2)
    own = {id(p) for p in link.discriminator.parameters()}
    groups = {n: {id(p) for g in w.optimizer.param_groups for p in g["params"]} for n, w in wrapper.items()}
    assert groups["link0"] == own
    assert groups["main"].isdisjoint(own)
    assert wrapper["link0"].optimizer.defaults["lr"] == 0.01
    before = [p.detach().clone() for p in link.discriminator.parameters()]
    batch = Batch(common.randn(8, 1, 8, 8), targets=torch.arange(8) % 3, ids=torch.arange(8))
    first = model.loss(batch)
    wrapper.update_params(torch.stack(list(first.values())).sum())
    assert any(not torch.equal(a, b) for a, b in zip(before, link.discriminator.parameters()))
    assert not any("discriminator" in key for key in model.deploy.state_dict())
    assert any("discriminator" in key for key in model.state_dict())  # saved for resume


def test_discriminator_learns_to_tell_the_sides_apart() -> None:
    link = make()
    optimizer = torch.optim.Adam(link.parameters(), lr=0.02)
    student, teacher = common.randn(64, 7, seed=5), 4 + common.randn(64, 7, seed=6)
    for _ in range(200):
        loss = link(inputs(student, [teacher]))["discriminator"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.45  # log(2) / 2 is the least; log(2) is chance
