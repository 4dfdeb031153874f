"""BOOT: the recursion is DDIM's, the target is a constant, and no image is read."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from limbeck.engine.adapter import Batch
from limbeck.engine.distiller import Distiller
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, UnknownName
from tests.multimodal.diffusion.methods.linked import (
    Blind,
    Constant,
    Flow,
    alpha,
    asked,
    boot_student,
    constant,
    ddim,
    distiller,
    images,
    link_inputs,
    opened,
    requests,
    sigma,
    wide,
    x0_of,
)
from tests.multimodal.diffusion.toys import gaussian, normal, toy

T = 64
BOOTSTRAP, BOUNDARY = "boot.loss_bootstrap", "boot.loss_boundary"
RAW: dict[str, Any] = dict(clip_targets=False, start="own")


def linked(*, teacher: Any = None, student: Any = None, **options: Any) -> Distiller:
    return distiller(dict(type="BOOT", **options), teacher or toy(seed=1), student or boot_student())


def signal_of(model: Distiller, z: np.ndarray, t: Any, labels: Any) -> np.ndarray:
    """y(ε, t): the network's output, or its negative where it predicts v."""
    with torch.no_grad():
        output = wide(model.deploy(torch.from_numpy(z).float(), torch.as_tensor(np.asarray(t)), labels))
    return output if model.deploy.prediction == "sample" else -output


def gap(t: Any, s: Any) -> np.ndarray:
    """1 - r, (B, 1, 1, 1)."""
    return 1 - sigma(s, T) * alpha(t, T) / (alpha(s, T) * sigma(t, T))


def expected(model: Distiller, step: int, **options: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Target, 1 - r and the boundary's target of the step just made, in numpy."""
    first, second = asked(model, "student")
    teacher, guidance = model.frozen["teacher"], options.get("guidance", 1.0)
    clamp = (lambda a: np.clip(a, -1, 1)) if options.get("clip_targets", True) else (lambda a: a)
    noise, t, labels = wide(first.z), first.t.numpy(), first.labels
    s, rest = t - step, gap(t, t - step)
    assert torch.equal(second.z[: len(t)], first.z)
    assert np.array_equal(second.t[: len(t)].numpy(), s)
    y = signal_of(model, noise, t, labels)
    f = clamp(x0_of(teacher, alpha(t, T) * y + sigma(t, T) * noise, t, labels, guidance))
    if options.get("heun", True):
        there = y + rest * (f - y)
        f = (f + clamp(x0_of(teacher, alpha(s, T) * there + sigma(s, T) * noise, s, labels, guidance))) / 2
    few = len(second.t) - len(t)
    pinned = clamp(x0_of(teacher, noise[:few], second.t[len(t) :].numpy(), labels[:few], guidance))
    return y + rest * (f - y), rest, pinned


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
@pytest.mark.parametrize(
    "options",
    [
        dict(heun=False, clip_targets=False),
        dict(heun=True, clip_targets=True, step_weight="inv"),
        dict(heun=True, clip_targets=False, step_weight="inv_sq", guidance=2.5, boundary=2.0, boundary_share=1.0),
    ],
)
def test_losses_and_gradients_are_those_of_a_regression_on_constants(prediction, options):
    student = boot_student(prediction=prediction)
    model, batch = linked(student=student, start="own", step=6, t_max=60, **options), images(20)
    terms = model.loss(batch)
    assert list(terms) == [BOOTSTRAP, BOUNDARY]
    sum(terms.values()).backward()
    found = [p.grad.clone() for p in model.deploy.parameters()]
    model.zero_grad()
    target, rest, pinned = expected(model, 6, **options)
    second = asked(model, "student")[1]
    few = len(pinned)
    assert few == round(20 * options.get("boundary_share", 0.25))
    assert set(second.t[20:].tolist()) == {60}
    output = model.deploy(second.z, second.t, second.labels)
    y = output if prediction == "sample" else -output
    weight = {"uniform": 0 * rest + 1, "inv": 1 / np.maximum(rest, 0.05), "inv_sq": 1 / rest**2}
    factor = torch.from_numpy(weight[options.get("step_weight", "uniform")]).float()
    bootstrap = (factor * (y[:20] - torch.from_numpy(target).float()).square()).mean()
    boundary = options.get("boundary", 0.5) * (y[20:] - torch.from_numpy(pinned).float()).square().mean()
    assert terms[BOOTSTRAP].item() == pytest.approx(bootstrap.item(), rel=1e-4)
    assert terms[BOUNDARY].item() == pytest.approx(boundary.item(), rel=1e-4)
    (bootstrap + boundary).backward()
    for got, p in zip(found, model.deploy.parameters()):
        assert got.any()
        torch.testing.assert_close(got, p.grad, rtol=1e-3, atol=1e-5)


def test_times_are_uniform_and_noise_is_normal_and_the_labels_are_the_batchs():
    model = linked(step=6, t_max=60, **RAW)
    batch = requests(600)
    model.loss(batch)
    first, second = asked(model, "student")
    assert (int(first.t.min()), int(first.t.max())) == (9, 60)
    assert first.t.float().mean().item() == pytest.approx(34.5, abs=2)
    assert (first.z.mean().item(), first.z.std().item()) == pytest.approx((0, 1), abs=0.05)
    assert torch.equal(first.labels, batch.targets)
    assert torch.equal(second.labels, torch.cat([batch.targets, batch.targets[:150]]))


def test_constant_teacher_and_student_have_no_loss():
    student = boot_student(Constant(0.4), num_classes=None)
    model = linked(teacher=constant(0.4), student=student, start="own")
    link = model.methods()[0]
    terms = link(link_inputs(model, images(32, classes=None)))
    assert [value.item() for value in terms.values()] == pytest.approx([0.0, 0.0], abs=1e-12)
    with torch.no_grad():
        student.network.value.fill_(0.1)
    assert link(link_inputs(model, images(32, classes=None)))["boundary"].item() == pytest.approx(0.5 * 0.3**2)


def test_exact_recursion_is_ddim_from_the_same_noise():
    model = linked(step=6, t_max=62, heun=False, **RAW)
    link, batch = model.methods()[0], images(5)
    noise, labels = normal(5, 1, 4, 4, seed=8, dtype=torch.float32), batch.targets
    inputs, teacher = link_inputs(model, batch), model.frozen["teacher"]
    grid = [62, 55, 40, 33, 20, 11, 3]
    y = torch.from_numpy(x0_of(teacher, wide(noise), [62] * 5, labels)).float()
    z = alpha([62] * 5, T) * wide(y) + sigma([62] * 5, T) * wide(noise)
    for now, then in pairwise(grid):
        t, s = torch.full((5,), now), torch.full((5,), then)
        y, kept = link.bootstrapped(inputs, noise, y, t, s, labels)
        assert bool(((kept > 0) & (kept < 1)).all())
        z = ddim(z, x0_of(teacher, z, t, labels), t, s, T)
        np.testing.assert_allclose(alpha(s, T) * wide(y) + sigma(s, T) * wide(noise), z, atol=1e-4)


def test_r_is_between_0_and_1_and_nears_them_at_the_ends():
    model = linked(**RAW)
    link, batch = model.methods()[0], images(4)
    y = torch.zeros(4, 1, 4, 4)
    t = torch.tensor([63, 40, 40, 4])
    for s in (torch.tensor([62, 39, 0, 3]), torch.tensor([0, 20, 38, 0])):
        _, found = link.bootstrapped(link_inputs(model, batch), y, y, t, s, batch.targets)
        want = 1 - gap(t.numpy(), s.numpy())
        np.testing.assert_allclose(wide(found), want, rtol=1e-5, atol=1e-7)
        assert ((want > 0) & (want < 1)).all()
    fine = [(1 - gap([40], [40 - d])).item() for d in (20, 4, 1)]
    assert fine == sorted(fine)
    assert fine[2] > 0.9
    assert (1 - gap([40], [-1])).item() == 0.0


def residual(step: int, *, heun: bool) -> float:
    """max |y*(ε, s) - target| at t = 0.7 for Gaussian pixels N(0.3, 0.5²), of which y* is known (boot.md, §12)."""
    student = boot_student(Flow(signal=True), steps=1600, num_classes=None, side=2, t_min=31)
    model = distiller(dict(type="BOOT", step=step, heun=heun, **RAW), gaussian(), student)
    link, noise = model.methods()[0], normal(400, 1, 2, 2, dtype=torch.float32).clamp(-1.4, 1.4)
    inputs = link_inputs(model, images(400, side=2, classes=None))
    t = torch.full((400,), 1119)
    with torch.no_grad():
        y = link.signal(inputs, noise, t, None)
        target, _ = link.bootstrapped(inputs, noise, y, t, t - step, None)
        return (link.signal(inputs, noise, t - step, None) - target).abs().max().item()


def test_residual_of_the_exact_signal_is_of_second_order_and_with_heun_of_third():
    first = [residual(step, heun=False) for step in (128, 64, 32, 16)]
    second = [residual(step, heun=True) for step in (128, 64, 32)]
    # The figures of boot.md, §12, made apart from this code. They are linear in ε: its largest was 1.4, as here.
    assert first == pytest.approx([6.6e-3, 1.8e-3, 4.7e-4, 1.2e-4], rel=0.05)
    assert second == pytest.approx([1.6e-4, 1.9e-5, 2.4e-6], rel=0.2)
    assert all(3.3 < a / b < 4.5 for a, b in pairwise(first))
    assert all(6.5 < a / b < 10 for a, b in pairwise(second))


def test_exact_signal_ends_as_the_teachers_first_guess():
    student = boot_student(Flow(signal=True), steps=1600, num_classes=None, side=2, t_min=31)
    noise = normal(8, 1, 2, 2, dtype=torch.float32)
    with torch.no_grad():
        y = student.signal(noise, 1598)
        assert (y - gaussian().predict(noise, 1598).x0).abs().max() < 2e-3
        assert (student.signal(noise, 0) - (0.3 + 0.5 * noise)).abs().max() < 3e-3  # x at the clean end


def test_gradient_does_not_reach_the_teacher():
    model = linked(step=6, start="own")
    theirs = opened(model, "teacher")
    sum(model.loss(images()).values()).backward()
    assert all(p.grad is None for p in theirs)


def test_no_image_is_read():
    found = []
    for inputs in (images(12).inputs, torch.full((12, 1, 4, 4), float("nan")), torch.zeros(12, 0), Blind(12)):
        model = linked(step=6, **RAW)
        batch = Batch(inputs, torch.arange(12) % 3, torch.arange(12))
        found.append([value.item() for value in model.loss(batch).values()])
    assert found[1:] == found[:1] * 3


def test_boundary_term_is_zero_where_the_student_is_the_teacher_at_the_last_time():
    student = boot_student()
    model = linked(teacher=toy(seed=1, prediction="sample"), student=student, step=6, clip_targets=False)
    terms = model.loss(images(16))
    assert terms[BOUNDARY].item() < 1e-12  # the student started as the teacher, whose output is its x0
    assert terms[BOOTSTRAP].item() > 1e-6


def test_v_student_starts_near_the_teachers_guess_at_the_last_time():
    far = boot_student(prediction="v_prediction")
    found = linked(student=far, step=6, t_max=63, clip_targets=False).loss(images(16))
    assert found[BOUNDARY].item() < 1e-6  # α is 2⁻¹² there


def test_guidance_is_folded_into_both_terms_and_the_student_has_none():
    model = linked(step=6, guidance=3.0, start="own")
    model.loss(images(16))
    questions = asked(model, "teacher")
    assert [len(q) for q in questions] == [16, 16, 4]
    assert {q.guidance for q in questions} == {3.0}
    assert {q.guidance for q in asked(model, "student")} == {1.0}
    assert model.teacher_forwards == 16 + 16 + 4


def test_boundary_of_zero_leaves_its_term_out():
    model = linked(step=6, boundary=0.0, start="own")
    assert list(model.loss(images())) == [BOOTSTRAP]
    assert [len(q) for q in asked(model, "teacher")] == [12, 12]


def test_weights_are_those_of_the_table():
    kept = torch.tensor([0.99, 0.5, 0.0]).reshape(3, 1, 1, 1)
    for kind, want in (("uniform", [1, 1, 1]), ("inv", [20, 2, 1]), ("inv_sq", [1e4, 4, 1])):
        link = METHODS.make(dict(type="BOOT", step_weight=kind))
        assert link.weights(kept).tolist() == pytest.approx(want, rel=1e-3)


class Table(nn.Module):
    """y = a(t) ε + b(t), a pair of numbers for each time."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.line = nn.Embedding(steps, 2)
        nn.init.zeros_(self.line.weight)

    def forward(self, z: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Any:
        a, b = self.line(t).reshape(-1, 2, 1, 1, 1).unbind(1)
        return SimpleNamespace(sample=a * z + b)


def test_trained_student_is_near_the_closed_form_of_gaussian_pixels():
    student = boot_student(Table(8), steps=8, num_classes=None, side=2, t_min=0)
    options = dict(type="BOOT", step=1, t_max=7, boundary=0.25, boundary_share=1.0, **RAW)
    model = distiller(options, gaussian(steps=8, side=2), student)
    optimizer = torch.optim.SGD(model.deploy.parameters(), lr=2.5)  # nearly Newton's: a step's loss is quadratic
    batch = images(64, side=2, classes=None)
    for iteration in range(40):
        model.iteration = iteration
        optimizer.zero_grad()
        sum(model.loss(batch).values()).backward()
        optimizer.step()
    scale, shift = student.network.line.weight.detach().T
    a, b = alpha(np.arange(8), 8).ravel(), sigma(np.arange(8), 8).ravel()
    want = (np.sqrt(a**2 * 0.25 + b**2) - b) / a
    np.testing.assert_allclose(shift.numpy(), 0.3, atol=0.015)
    np.testing.assert_allclose(scale.numpy(), want, atol=0.03)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (dict(step_weight="inv2"), UnknownName, "unknown step_weight 'inv2'"),
        (dict(boundary=-1.0), ConfigError, "boundary of BOOT is 0 or more"),
        (dict(boundary_share=0.0), ConfigError, r"boundary_share in \(0, 1\]"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, error, said):
    with pytest.raises(error, match=said):
        METHODS.make(dict(type="BOOT", **options))


@pytest.mark.parametrize("options", [dict(t_max=64), dict(step=0), dict(step=61), dict(t_max=5, step=3)])
def test_times_out_of_order_are_refused(options):
    with pytest.raises(ConfigError, match="0 <= t_min < t_min \\+ step <= t_max < 64; got t_min=3"):
        linked(**options, start="own")


def test_default_times_are_a_twentieth_and_the_last_but_a_hundredth():
    student = boot_student(Flow(signal=True), steps=1600, num_classes=None, side=2, t_min=31)
    link = distiller(dict(type="BOOT", **RAW), gaussian(), student).methods()[0]
    assert (link.step, link.t_max) == (80, 1583)


def test_students_of_other_kinds_are_refused():
    with pytest.raises(ConfigError, match="build it with boot_t_min"):
        distiller(dict(type="BOOT"), toy(seed=1), toy(seed=2))
    with pytest.raises(ConfigError, match="predicts 'v_prediction' or 'sample'"):
        boot_student(prediction="epsilon")
