"""Diversity distillation: its ends are the two samplers, its grids, what it costs, mistakes."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the 'multimodal' extra")

from limbeck.engine.weights import hash_state
from limbeck.errors import ConfigError
from limbeck.multimodal.diffusion.hand_over import hand_over
from limbeck.multimodal.diffusion.samplers import Sampler, generators
from tests.multimodal.diffusion.toys import gaussian, normal, toy

LABELS = torch.tensor([2, 0, 1])
Z = normal(3, 1, 4, 4, dtype=torch.float32)


@pytest.mark.parametrize("kind", ["ddim", "consistency"])
@pytest.mark.parametrize("base_steps", [None, 16, 2])
def test_at_no_step_it_is_the_students_sampler_bit_for_bit(kind, base_steps) -> None:
    base, student = toy(seed=0), toy(seed=1)
    options = dict(student_steps=4, base_steps=base_steps, guidance=3.0, student_kind=kind)
    found = hand_over(base, student, Z, LABELS, at=0, generators=generators(3, 0), record=True, **options)
    plain = Sampler(kind, 4).sample(student, Z, LABELS, generators=generators(3, 0), record=True)
    assert torch.equal(found.images, plain.images)
    assert torch.equal(found.x0s, plain.x0s)
    assert (found.calls, base.calls) == (4, 0)


@pytest.mark.parametrize("base_steps", [None, 16, 2, 64])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_at_the_last_step_it_is_the_bases_sampler_bit_for_bit(base_steps, guidance) -> None:
    base, student = toy(seed=0), toy(seed=1)
    found = hand_over(
        base, student, Z, LABELS, student_steps=4, at=4, base_steps=base_steps, guidance=guidance, record=True
    )
    plain = Sampler("ddim", base_steps or 4, guidance).sample(base, Z, LABELS, record=True)
    assert torch.equal(found.images, plain.images)
    assert torch.equal(found.x0s, plain.x0s)
    assert found.calls == plain.calls
    assert student.calls == 0


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_student_that_is_the_base_on_the_same_grid_changes_nothing(at) -> None:
    base = toy()
    found = hand_over(base, toy(), Z, LABELS, student_steps=4, at=at, record=True)
    plain = Sampler("ddim", 4).sample(base, Z, LABELS, record=True)
    assert torch.equal(found.images, plain.images)
    assert torch.equal(found.x0s, plain.x0s)
    assert found.times.tolist() == plain.times.tolist()


@pytest.mark.parametrize("at", range(5))
@pytest.mark.parametrize("base_steps", [None, 8, 16, 2])
@pytest.mark.parametrize(("guidance", "student_guidance"), [(1.0, 1.0), (3.0, 1.0), (3.0, 2.0)])
def test_calls_are_counted(at, base_steps, guidance, student_guidance) -> None:
    base, student = toy(seed=0), toy(seed=1)
    found = hand_over(
        base,
        student,
        Z,
        LABELS,
        student_steps=4,
        at=at,
        base_steps=base_steps,
        guidance=guidance,
        student_guidance=student_guidance,
    )
    of_base = math.ceil(at * (base_steps or 4) / 4) * (1 if guidance == 1 else 2)
    of_student = (4 - at) * (1 if student_guidance == 1 else 2)
    assert (base.calls, student.calls, found.calls) == (of_base, of_student, of_base + of_student)


def test_times_contain_the_hand_over() -> None:
    def times(**options) -> list[int]:
        return hand_over(toy(), toy(), Z, LABELS, student_steps=4, record=True, **options).times.tolist()

    assert times(at=1) == [63, 47, 31, 15]
    assert times(at=1, base_steps=16) == [63, 59, 55, 51, 47, 31, 15]
    assert times(at=2, base_steps=8) == [63, 55, 47, 39, 31, 15]
    assert times(at=1, base_steps=2) == [63, 47, 31, 15]  # the base's first step is cut short at the student's time
    assert times(at=3, base_steps=2) == [63, 31, 15]
    assert times(at=0, base_steps=16) == [63, 47, 31, 15]


def test_the_base_ends_exactly_where_the_student_begins() -> None:
    # Both are exact for Gaussian data, so a fine base walks the flow down to the student's time and no further.
    base, student = gaussian(steps=1600), gaussian(steps=1600)
    z = normal(3, 1, 2, 2)
    schedule, mean, std = base.schedule, 0.3, 0.5
    found = hand_over(base, student, z, student_steps=4, at=1, base_steps=50, record=True)  # 12.5 of its steps
    assert base.network.times == list(range(1599, 1599 - 13 * 32, -32))
    assert student.network.times == [1199, 799, 399]
    # Independent: the base's times and 1199, by the definition of DDIM.
    state = z
    for now, then in zip([*base.network.times, 1199, 799, 399], [*base.network.times[1:], 1199, 799, 399, -1]):
        alpha, to_alpha = (schedule.alpha(t, torch.float64) for t in (now, then))
        sigma, to_sigma = (schedule.sigma(t, torch.float64) for t in (now, then))
        x0 = mean + alpha * std**2 * (state - alpha * mean) / (alpha**2 * std**2 + sigma**2)
        state = to_alpha * x0 + to_sigma * (state - alpha * x0) / sigma
    torch.testing.assert_close(found.images, state, rtol=0, atol=1e-9)
    assert torch.equal(found.x0s[-1], found.images)
    assert found.x0s.shape[0] == found.calls == 16


def test_a_finer_base_comes_nearer_to_the_flow() -> None:
    z = normal(8, 1, 2, 2)
    exact = Sampler("ddim", 1600).sample(gaussian(), z).images
    error = []
    for at in (0, 1, 2, 4):
        found = hand_over(gaussian(), gaussian(), z, student_steps=4, at=at, base_steps=200).images
        error.append((found - exact).abs().mean().item())
    assert error == sorted(error, reverse=True)
    assert error[-1] < error[0] / 10


def test_nothing_is_trained_and_no_gradient_is_kept() -> None:
    base, student = toy(seed=0).train(), toy(seed=1).train()
    before = hash_state(base.state_dict()), hash_state(student.state_dict())
    found = hand_over(
        base, student, Z.clone().requires_grad_(), LABELS, student_steps=4, at=1, base_steps=2, record=True
    )
    assert not found.images.requires_grad
    assert not found.x0s.requires_grad
    assert (hash_state(base.state_dict()), hash_state(student.state_dict())) == before
    assert base.training
    assert not any(base.network.modes + student.network.modes)  # nor is there drop-out


def test_clamping_reaches_every_step() -> None:
    found = hand_over(toy(seed=0), toy(seed=1), 5 * Z, LABELS, student_steps=4, at=1, base_steps=2, record=True)
    free = hand_over(
        toy(seed=0), toy(seed=1), 5 * Z, LABELS, student_steps=4, at=1, base_steps=2, record=True, clip=False
    )
    assert (found.x0s.abs().flatten(1).amax(1) <= 1).all()
    assert (free.x0s.abs().flatten(1).amax(1) > 1).all()


def test_a_stochastic_student_draws_from_its_generators() -> None:
    def sample(seed: int) -> torch.Tensor:
        options = dict(student_steps=4, at=1, student_kind="consistency", generators=generators(3, seed))
        return hand_over(toy(seed=0), toy(seed=1), Z, LABELS, **options).images

    assert torch.equal(sample(0), sample(0))
    assert not torch.equal(sample(0), sample(1))


@pytest.mark.parametrize("at", [-1, 5, 1.0])
def test_a_step_that_the_student_does_not_have_is_told(at) -> None:
    with pytest.raises(ConfigError, match=r"hand-over is at a step 0 … 4 of the student"):
        hand_over(toy(), toy(), Z, LABELS, student_steps=4, at=at)


def test_models_that_do_not_go_together_are_told() -> None:
    with pytest.raises(ConfigError, match="different noise schedules"):
        hand_over(toy(steps=64), toy(steps=128), Z, LABELS, student_steps=4, at=1)
    with pytest.raises(ConfigError, match=r"base makes images \(1, 2, 2\) and student \(1, 4, 4\)"):
        hand_over(gaussian(steps=64), toy(steps=64), Z, LABELS, student_steps=4, at=1)
    with pytest.raises(ConfigError, match="3 sampling steps do not divide"):
        hand_over(toy(), toy(), Z, LABELS, student_steps=4, at=1, base_steps=3)
    with pytest.raises(ConfigError, match="takes 1 step or more"):
        hand_over(toy(), toy(), Z, LABELS, student_steps=0, at=0)
    with pytest.raises(ConfigError, match="one generator for each"):
        hand_over(toy(), toy(), Z, LABELS, student_steps=4, at=1, student_kind="consistency")
