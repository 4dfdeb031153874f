"""Consistency distillation: boundary, target, solvers on exact Gaussians, the moving average, and dropout masks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from limbeck.engine.distiller import Distiller
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, UnknownName
from limbeck.multimodal.diffusion.denoiser import Denoiser
from limbeck.multimodal.diffusion.schedule import NoiseSchedule
from tests.multimodal.diffusion.methods.linked import (
    alpha,
    asked,
    ddim,
    distiller,
    flow,
    flow_denoiser,
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
TARGET: dict[str, Any] = dict(target=dict(type="ema", of="student", momentum=0.9))
TERM = "consistencydistillation.loss_consistency"


def linked(*, teacher: Any = None, student: Any = None, more: Any = None, **options: Any) -> Distiller:
    link = dict(type="ConsistencyDistillation", intervals=8, **options)
    if more is not None:
        link |= dict(teacher=["teacher", "target"], target="target")
    return distiller(link, teacher or toy(seed=1), student or toy(seed=2), more=more)


def moved(model: Distiller, z: np.ndarray, t: np.ndarray, s: np.ndarray, labels: Tensor, **options: Any) -> np.ndarray:
    """The teacher's step from t to s."""
    teacher, clip = model.frozen["teacher"], options.get("clip_targets", False)
    clamp = (lambda a: np.clip(a, -1, 1)) if clip else (lambda a: a)
    guidance = options.get("guidance", 1.0)
    x0 = clamp(x0_of(teacher, z, t, labels, guidance))
    once = ddim(z, x0, t, s, T)
    if not options.get("heun"):
        return once
    later = clamp(x0_of(teacher, once, np.maximum(s, 0), labels, guidance))
    x0 = np.where((s < 0).reshape(-1, 1, 1, 1), x0, (x0 + later) / 2)
    return ddim(z, x0, t, s, T)


def distance(a: np.ndarray, b: np.ndarray, kind: str, huber: float = 0.03) -> float:
    gap = (a - b).reshape(len(a), -1)
    if kind == "l1":
        return float(np.abs(gap).mean())
    if kind == "l2":
        return float((gap**2).mean())
    c = huber * np.sqrt(gap.shape[1])
    return float(np.mean(np.sqrt((gap**2).sum(1) + c**2) - c))


@pytest.mark.parametrize(
    "options",
    [
        dict(distance="l2"),
        dict(distance="l1", heun=True),
        dict(distance="pseudo-huber", huber=0.2),
        dict(distance="l2", heun=True, guidance=2.5, clip_targets=True),
    ],
)
@pytest.mark.parametrize("average", [False, True])
def test_loss_is_the_distance_to_the_targets_answer_one_teacher_step_on(options, average):
    model = linked(start="own", more=TARGET if average else None, **options)
    if average:
        with torch.no_grad():
            for p in model.shadows["target"].parameters():
                p.mul_(0.7)
    batch = images(40)
    found = model.loss(batch)
    assert list(found) == [TERM]
    name = "target" if average else "student"
    questions = asked(model, "student")
    question, t = questions[0], questions[0].t.numpy()
    s = t - T // 8
    assert set(t) == {63, 55, 47, 39, 31, 23, 15, 7}
    z = wide(question.z)
    noise = (z - alpha(t, T) * wide(batch.inputs)) / sigma(t, T)
    assert (abs(noise.mean()), noise.std()) == pytest.approx((0, 1), abs=0.12)
    step = moved(model, z, t, s, question.labels, **options)
    last = (s < 0).reshape(-1, 1, 1, 1)
    followed = np.where(last, step, x0_of(model.member(name), step, np.maximum(s, 0), question.labels))
    want = distance(x0_of(model.deploy, z, t, question.labels), followed, options["distance"], options.get("huber", 0))
    assert found[TERM].item() == pytest.approx(want, rel=1e-4)
    assert {q.guidance for q in asked(model, "teacher")} == {options.get("guidance", 1.0)}
    assert {q.guidance for q in questions + asked(model, name)} == {1.0}


def test_boundary_holds_exactly_for_random_weights():
    model = linked(start="own", more=TARGET)
    link, batch = model.methods()[0], images(6)
    z = 3 * normal(6, 1, 4, 4, seed=4, dtype=torch.float32)
    s = torch.tensor([-1, 7, -1, 63, 0, -1])
    found = link.consistent(link_inputs(model, batch), z, s, batch.targets)
    assert torch.equal(found[s < 0], z[s < 0])
    assert not torch.isclose(found[s >= 0], z[s >= 0]).all()
    # f itself runs into z as the noise goes: α z - σ v.
    fine = NoiseSchedule.cosine(1 << 20)
    model = toy(seed=1)
    model.schedule = fine
    with torch.no_grad():
        torch.testing.assert_close(model.predict(z, 0, batch.targets).x0, z, rtol=0, atol=1e-4)


def residuals(intervals: int, *, heun: bool) -> tuple[np.ndarray, np.ndarray]:
    """|f(z_t, t) - f(ẑ_s, s)| of the exact f of Gaussian pixels at every time of the grid; the times in [0, 1]."""
    link = dict(type="ConsistencyDistillation", intervals=intervals, heun=heun, start="own")
    model = distiller(link, gaussian(), flow_denoiser())
    method, inputs = model.methods()[0], link_inputs(model, images(intervals, side=2, classes=None))
    t = torch.arange(1600, 0, -(1600 // intervals)) - 1
    s = t - 1600 // intervals
    z = torch.from_numpy(alpha(t, 1600) * 0.8 - 1.3 * sigma(t, 1600)).float().expand(-1, 1, 2, 2).contiguous()
    np.testing.assert_allclose(
        wide(model.deploy.predict(z, t).x0), flow(wide(z), t, 0.3, 0.5, 1600), atol=1e-6
    )  # the oracle is one
    with torch.no_grad():
        ahead = method.step(inputs, z, t, s, None)
        gap = model.deploy.predict(z, t).x0 - method.consistent(inputs, ahead, s, None)
    return wide(gap.abs().flatten(1).amax(1)), (t.numpy() + 1) / 1600


def test_exact_student_has_a_residual_of_second_order_under_ddim():
    found = [residuals(n, heun=False)[0].max() for n in (16, 32, 64, 160)]
    assert 2.8 < found[0] / found[1] < 4.5
    assert 3.3 < found[1] / found[2] < 4.5
    assert 5.0 < found[2] / found[3] < 7.0  # 2.5² = 6.25
    assert found[3] < 1.5e-4


def test_exact_student_has_a_residual_of_third_order_under_heun_while_noise_prevails():
    found = []
    for n in (8, 16, 32):
        gap, time = residuals(n, heun=True)
        found.append(gap[time >= 0.5].max())
        plain, _ = residuals(n, heun=False)
        assert (gap[:-1].max(), gap[-1]) <= (plain.max(), plain[-1] * 1.001)
    assert found[0] / found[1] > 7
    assert found[1] / found[2] > 7


def test_loss_of_the_exact_student_vanishes_as_intervals_grow():
    found = []
    for n in (8, 16, 32):
        link = dict(type="ConsistencyDistillation", intervals=n, distance="l2", start="own")
        model = distiller(link, gaussian(), flow_denoiser())
        batch = images(256, side=2, classes=None)
        batch.inputs = 0.3 + 0.5 * batch.inputs
        found.append(model.loss(batch)[TERM].item())
    assert found[0] > 8 * found[1] > 64 * found[2] > 0


def test_gradient_reaches_the_student_alone():
    model = linked(start="own", more=TARGET, heun=True)
    theirs = opened(model, "teacher", "target")
    model.loss(images())[TERM].backward()
    assert all(p.grad is None for p in theirs)
    assert all(p.grad is not None and p.grad.any() for p in model.deploy.parameters())


def test_gradient_is_that_of_a_regression_on_a_constant_where_the_student_is_its_own_target():
    model, batch = linked(start="own", distance="l2"), images(24)
    model.loss(batch)[TERM].backward()
    found = [p.grad.clone() for p in model.deploy.parameters()]
    model.zero_grad()
    question = asked(model, "student")[0]
    t = question.t.numpy()
    s = t - 8
    step = moved(model, wide(question.z), t, s, question.labels)
    followed = x0_of(model.deploy, step, np.maximum(s, 0), question.labels)
    target = torch.from_numpy(np.where((s < 0).reshape(-1, 1, 1, 1), step, followed)).float()
    answer = model.deploy.predict(question.z, question.t, question.labels).x0
    (answer - target).square().mean().backward()
    for got, p in zip(found, model.deploy.parameters()):
        torch.testing.assert_close(got, p.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_target_starts_as_the_student_and_moves_by_its_momentum(momentum):
    model = linked(more=dict(target=dict(type="ema", of="student", momentum=momentum)))
    shadow = model.shadows["target"]
    old = [p.clone() for p in shadow.parameters()]
    for mine, its, teachers in zip(old, model.deploy.parameters(), model.frozen["teacher"].parameters()):
        assert torch.equal(mine, its)
        assert torch.equal(mine, teachers)  # copied after the average was made, and so to it as well
    optimizer = torch.optim.SGD(model.deploy.parameters(), lr=0.1)
    model.loss(images())[TERM].backward()
    optimizer.step()
    model.update_shadows()
    for before, mine, its in zip(old, shadow.parameters(), model.deploy.parameters()):
        assert not torch.equal(before, its)
        want = {0.0: its, 1.0: before}.get(momentum, momentum * before + (1 - momentum) * its)
        torch.testing.assert_close(mine, want, rtol=0, atol=0 if momentum in (0.0, 1.0) else 1e-6)


def test_pseudo_huber_is_quadratic_near_and_linear_far():
    link = METHODS.make(dict(type="ConsistencyDistillation", huber=0.03))
    a, unit = torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8)
    c = 0.03 * 8
    near, far = link.apart(a, 1e-3 * unit), link.apart(a, 1e3 * unit)
    assert near.shape == (2,)
    assert near[0].item() == pytest.approx((1e-3 * 8) ** 2 / (2 * c), rel=1e-2)
    assert far[0].item() == pytest.approx(1e3 * 8 - c, rel=1e-4)
    assert link.apart(a, a).tolist() == [0.0, 0.0]


class Masks(nn.Module):
    """What dropout leaves of ones; keeps every mask."""

    kept: list[Tensor] = []

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Any:
        mask = nn.functional.dropout(torch.ones_like(z), 0.5, self.training)
        self.kept.append(mask)
        return SimpleNamespace(sample=self.scale * mask)


@pytest.mark.parametrize("average", [False, True])
def test_student_and_target_drop_the_same_and_leave_the_generator_as_the_student_does(average):
    student = Denoiser(Masks(), NoiseSchedule.cosine(T), "sample", None, 4, 1, clip=False)
    more = TARGET if average else None
    model = linked(teacher=toy(None, seed=1), student=student, start="own", more=more).train()
    Masks.kept.clear()
    torch.manual_seed(5)
    model.loss(images(classes=None))
    state = torch.get_rng_state()
    mine, its = Masks.kept
    assert torch.equal(mine, its)
    assert 0 < int((mine == 0).sum()) < mine.numel()
    torch.manual_seed(5)
    nn.functional.dropout(torch.ones_like(mine), 0.5)
    assert torch.equal(state, torch.get_rng_state())
    assert student.training
    if average:
        assert not any(m.training for m in model.shadows["target"].modules())
    model.eval()
    Masks.kept.clear()
    model.loss(images(classes=None))
    assert all(bool((mask == 1).all()) for mask in Masks.kept)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (dict(distance="lpips"), UnknownName, "unknown distance 'lpips'"),
        (dict(intervals=0), ConfigError, "intervals is 1 or more"),
        (dict(huber=0.0), ConfigError, "huber above 0"),
        (dict(target="average"), ConfigError, r"set teacher=\['teacher', 'average'\]"),
        (dict(target="teacher"), ConfigError, "neither the student nor a further teacher"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, error, said):
    with pytest.raises(error, match=said):
        METHODS.make(dict(type="ConsistencyDistillation", **options))


def test_data_and_intervals_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="ConsistencyDistillation reads images, and the training data has none"):
        linked().loss(requests())
    with pytest.raises(ConfigError, match="7 sampling steps do not divide the schedule's 64"):
        distiller(dict(type="ConsistencyDistillation", intervals=7), toy(), toy())
