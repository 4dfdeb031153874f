"""Progressive distillation: the target, its weights, where gradients go, and what is refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.engine.distiller import Distiller
from limbeck.engine.registry import METHODS
from limbeck.engine.weights import hash_state
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName
from limbeck.multimodal.diffusion.methods.progressive import one_step_target, step_weight
from limbeck.multimodal.diffusion.schedule import NoiseSchedule
from tests.multimodal.diffusion.methods.linked import (
    alpha,
    asked,
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


def linked(steps: int = 4, *, teacher: Any = None, student: Any = None, task_weight: float = 0.0, **options: Any):
    link = dict(type="ProgressiveDistillation", steps=steps, **options)
    return distiller(link, teacher or toy(seed=1), student or toy(seed=2), task_weight=task_weight)


def expected(model: Distiller, x: torch.Tensor, weight: str, *, guidance: float = 1.0, clip: bool = False) -> float:
    """The loss by algorithm 2, at the times and noise of the step that was just made."""
    (first, second), (question,) = asked(model, "teacher"), asked(model, "student")
    assert torch.equal(first.z, question.z)
    assert torch.equal(first.t, question.t)
    teacher, student = model.frozen["teacher"], model.members["student"]
    z, t = wide(question.z), question.t.numpy()
    half = (t - second.t.numpy())[0]
    clamp = (lambda a: np.clip(a, -1, 1)) if clip else (lambda a: a)
    x1 = clamp(x0_of(teacher, z, t, first.labels, guidance))
    middle = ddim(z, x1, t, t - half, T)
    np.testing.assert_allclose(wide(second.z), middle, atol=2e-6)
    x2 = clamp(x0_of(teacher, middle, t - half, second.labels, guidance))
    s = t - 2 * half
    landed = ddim(middle, x2, t - half, s, T)
    ratio = sigma(s, T) / sigma(t, T)
    target = (landed - ratio * z) / (alpha(s, T) - ratio * alpha(t, T))
    np.testing.assert_allclose(target[s < 0], x2[s < 0], atol=1e-9)
    assert (s < 0).any()  # the last step is among them
    np.testing.assert_allclose(ddim(z, target, t, s, T), landed, atol=1e-9)
    error = ((x0_of(student, z, t, question.labels) - target) ** 2).reshape(len(t), -1).mean(1)
    snr = (alpha(t, T) / sigma(t, T)).reshape(-1) ** 2
    factor = {"snr_trunc": np.maximum(snr, 1), "snr+1": snr + 1, "constant": 1.0 + 0 * snr, "snr": snr}[weight]
    return float((factor * error).mean())


@pytest.mark.parametrize("weight", ["snr_trunc", "snr+1", "constant", "snr"])
def test_loss_is_the_gap_to_two_steps_of_the_teacher(weight):
    model, batch = linked(start="own", loss_weight=weight), images(32)
    terms = model.loss(batch)
    assert list(terms) == ["progressivedistillation.loss_x0"]
    found = terms["progressivedistillation.loss_x0"].item()
    assert found == pytest.approx(expected(model, batch.inputs, weight), rel=1e-4)


def test_z_is_the_batchs_images_under_normal_noise_at_uniform_times_of_the_student():
    model, batch = linked(start="own"), images(512)
    model.loss(batch)
    (question,) = asked(model, "student")
    t, x = question.t.numpy(), wide(batch.inputs)
    assert set(t) == {63, 47, 31, 15}
    assert np.bincount(t).max() < 512 / 4 + 60
    noise = (wide(question.z) - alpha(t, T) * x) / sigma(t, T)
    assert abs(noise.mean()) < 0.05
    assert noise.std() == pytest.approx(1, abs=0.03)
    assert np.corrcoef(noise.ravel(), x.ravel())[0, 1] == pytest.approx(0, abs=0.05)
    assert question.guidance == 1.0
    assert torch.equal(question.labels, batch.targets)


def test_weight_of_v_is_the_error_of_v():
    model, batch = linked(start="own", loss_weight="snr+1"), images(16)
    found = model.loss(batch)["progressivedistillation.loss_x0"].item()
    (_, second), (question,) = asked(model, "teacher"), asked(model, "student")
    t = question.t
    s = t - 2 * (t - second.t)
    schedule, teacher = model.deploy.schedule, model.frozen["teacher"]
    x2 = teacher.predict(second.z, second.t, second.labels).x0
    x = one_step_target(schedule, question.z, schedule.ddim(second.z, x2, second.t, s), x2, t, s)
    a, b = schedule.alpha(t), schedule.sigma(t)
    v = a * (question.z - a * x) / b - b * x
    with torch.no_grad():
        error = (model.deploy.predict(question.z, t, question.labels).v - v).square().mean().item()
    assert found == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [1, 2, 8, 32])
def test_one_step_to_the_target_lands_where_two_land(steps, dtype):
    schedule = NoiseSchedule.cosine(T)
    t, half = schedule.trailing(steps), T // (2 * steps)
    z, x1, x2 = (normal(steps, 1, 3, 3, seed=k, dtype=dtype) for k in range(3))
    middle = schedule.ddim(z, x1, t, t - half)
    landed = schedule.ddim(middle, x2, t - half, t - 2 * half)
    target = one_step_target(schedule, z, landed, x2, t, t - 2 * half)
    assert target.dtype == dtype
    assert torch.isfinite(target).all()
    assert torch.equal(target[-1], x2[-1])
    close = dict(rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)
    torch.testing.assert_close(schedule.ddim(z, target, t, t - 2 * half), landed, **close)


def test_constant_teacher_gives_that_constant_as_target():
    model = linked(8, teacher=constant(0.7), student=constant(-0.2), start="own", loss_weight="constant")
    loss = model.loss(images(64, classes=None))["progressivedistillation.loss_x0"]
    assert loss.item() == pytest.approx(0.9**2, rel=1e-4)
    with torch.no_grad():
        model.deploy.network.value.fill_(0.7)
    link, batch = model.methods()[0], images(64, classes=None)
    assert link(link_inputs(model, batch))["x0"].item() < 1e-9


def test_weights_are_those_of_the_table():
    schedule = NoiseSchedule.cosine(1600)
    t = torch.tensor([1599, 1400, 800, 799, 100, 0])
    angle = np.pi / 2 * (t.numpy() + 1) / 1600
    snr = np.maximum(np.cos(angle), 2.0**-12) ** 2
    snr = snr / (1 - snr)
    for kind, want in (
        ("snr", snr),
        ("snr+1", snr + 1),
        ("snr_trunc", np.maximum(snr, 1)),
        ("constant", np.ones(6)),
    ):
        np.testing.assert_allclose(wide(step_weight(schedule, t, kind)), want, rtol=1e-5)
    assert step_weight(schedule, schedule.trailing(1), "snr").item() < 1e-7  # a one-step student learns nothing of it


def test_gradient_reaches_all_of_the_student_and_nothing_of_the_teacher():
    model = linked(start="own")
    theirs = opened(model, "teacher")
    model.loss(images())["progressivedistillation.loss_x0"].backward()
    assert all(p.grad is None for p in theirs)
    assert all(p.grad is not None and p.grad.any() for p in model.deploy.parameters())


def test_student_starts_with_the_teachers_weights_unless_told():
    teacher = toy(seed=1)
    own = hash_state(toy(seed=2).state_dict())
    copied = linked(teacher=teacher)
    assert copied.initial_hash == hash_state(teacher.state_dict()) != own
    assert linked(start="own").initial_hash == own
    assert linked(weight=0.0).initial_hash == own


def test_first_loss_is_the_teachers_own_gap_and_falls_fourfold_with_twice_the_steps():
    found = []
    for steps in (4, 8, 16, 32):
        model = linked(steps, teacher=gaussian(), student=gaussian(), loss_weight="constant")
        batch = images(768, side=2, classes=None)
        batch.inputs = 0.3 + 0.5 * batch.inputs
        link = model.methods()[0]
        found.append(link(link_inputs(model, batch))["x0"].item())
    ratios = [a / b for a, b in pairwise(found)]
    assert all(3.0 < ratio < 8.0 for ratio in ratios), found
    assert found[0] == pytest.approx(1.77e-3, rel=0.25)  # computed apart, in numpy


@pytest.mark.parametrize("clip", [False, True])
def test_guided_and_clamped_targets(clip):
    model, batch = linked(start="own", guidance=3.0, clip_targets=clip), images(24)
    found = model.loss(batch)["progressivedistillation.loss_x0"].item()
    assert {q.guidance for q in asked(model, "teacher")} == {3.0}
    assert {q.guidance for q in asked(model, "student")} == {1.0}
    want = expected(model, batch.inputs, "snr+1", guidance=3.0, clip=clip)
    assert found == pytest.approx(want, rel=1e-4)


def test_dropped_labels_are_the_same_for_both():
    model, batch = linked(start="own", drop_labels=0.25), images(400)
    model.loss(batch)
    first, second, question = (*asked(model, "teacher"), *asked(model, "student"))
    dropped = question.labels == 3
    assert 60 < int(dropped.sum()) < 140
    assert torch.equal(question.labels[~dropped], batch.targets[~dropped])
    assert torch.equal(first.labels, question.labels)
    assert torch.equal(second.labels, question.labels)


def test_numbers_of_a_step_depend_on_seed_and_step_alone():
    def drawn(iteration: int, seed: int = 0) -> torch.Tensor:
        torch.manual_seed(iteration + 7)
        link = dict(type="ProgressiveDistillation", steps=4)
        model = distiller(link, toy(seed=1), toy(seed=2), seed=seed)
        model.iteration = iteration
        before = torch.get_rng_state()
        model.loss(images())
        assert torch.equal(before, torch.get_rng_state())
        return asked(model, "student")[0].z

    assert torch.equal(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(4))
    assert not torch.equal(drawn(3), drawn(3, seed=1))


@pytest.mark.parametrize("steps", [3, 64])
def test_steps_whose_double_does_not_divide_the_schedule_are_refused(steps):
    with pytest.raises(ConfigError, match=f"a student of {steps} steps .*do not divide the schedule's 64"):
        linked(steps)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (dict(steps=0), ConfigError, "1 step or more; got steps=0"),
        (dict(steps=2.0), ConfigError, "1 step or more; got steps=2.0"),
        (dict(steps=2, loss_weight="snr_trunk"), UnknownName, "did you mean 'snr_trunc'"),
        (dict(steps=2, start="techer"), ConfigError, "'teacher' or 'own'; got 'techer'"),
        (dict(steps=2, drop_labels=1.0), ConfigError, r"share in \[0, 1\)"),
        (dict(steps=2, drop_labels=0.1, guidance=2.0), ConfigError, "0 with guidance"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, error, said):
    with pytest.raises(error, match=said):
        METHODS.make(dict(type="ProgressiveDistillation", **options))


def test_members_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="noisy images of one noise schedule; got two of 128 and 64 times"):
        linked(student=toy(steps=128))
    with pytest.raises(ConfigError, match="members of one run make images of one shape"):
        linked(teacher=gaussian(steps=64), student=toy(num_classes=None))
    with pytest.raises(ShapeMismatch, match="another network; set start='own'"):
        linked(student=toy(num_classes=5))
    with pytest.raises(ConfigError, match=r"predicts 'sample' and cannot start .* predicts 'v_prediction'"):
        linked(student=toy(prediction="sample"))
    assert linked(student=toy(prediction="sample"), start="own").initial_hash
    with pytest.raises(ConfigError, match="ProgressiveDistillation reads images, and the training data has none"):
        linked().loss(requests())
