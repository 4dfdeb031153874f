"""Samplers: diffusers' DDIM is ours, the Gaussian oracle's closed forms, noise of each image, mistakes."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

diffusers = pytest.importorskip("diffusers", reason="needs the 'multimodal' extra")

from limbeck.engine.weights import hash_state  # noqa: E402
from limbeck.errors import ConfigError, UnknownName, UserError  # noqa: E402
from limbeck.multimodal.diffusion.samplers import (  # noqa: E402
    KINDS,
    Sampler,
    _scheduler,
    class_labels,
    generators,
    noise,
)
from limbeck.multimodal.diffusion.schedule import PREDICTIONS, NoiseSchedule  # noqa: E402
from limbeck.multimodal.diffusion.trajectory import commitment  # noqa: E402
from tests.multimodal.diffusion.toys import gaussian, normal, toy  # noqa: E402

LABELS = torch.tensor([2, 0, 1])


def flow(z: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    """Where the probability-flow ODE of pixels N(m, s²) leads from z: it keeps (z − αm)/√(α²s² + σ²)."""
    alpha2 = 2.0**-24
    return mean + std * (z - math.sqrt(alpha2) * mean) / math.sqrt(alpha2 * std**2 + 1 - alpha2)


# --- DDIM ---


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_of_diffusers_is_the_schedules_own_step(steps, prediction) -> None:
    model, schedule = gaussian(prediction=prediction), NoiseSchedule.cosine(1600)
    z = normal(3, 1, 2, 2)
    found = Sampler("ddim", steps).sample(model, z, record=True)
    times = [*schedule.trailing(steps).tolist(), -1]
    assert model.network.times == times[:-1]
    state, x0s = z, []
    for now, then in pairwise(times):
        x0s.append(model.predict(state, now).x0)
        state = schedule.ddim(state, x0s[-1], now, then)
    torch.testing.assert_close(found.images, state, rtol=0, atol=1e-13)
    torch.testing.assert_close(found.x0s, torch.stack(x0s), rtol=0, atol=1e-13)
    assert found.times.tolist() == times[:-1]
    assert found.calls == steps


def test_ddim_of_gaussian_data_is_a_recursion_of_numbers() -> None:
    mean, std, steps, total = 0.3, 0.5, 8, 1600
    z = normal(5, 1, 1, 1)
    angle = [math.pi / 2 * (total - k * total // steps) / total for k in range(steps + 1)]
    state = z.numpy().copy()
    for here, there in pairwise(angle):
        alpha, to_alpha = max(math.cos(here), 2.0**-12), math.cos(there)
        sigma, to_sigma = math.sqrt(1 - alpha**2), math.sqrt(1 - to_alpha**2)
        x0 = mean + alpha * std**2 * (state - alpha * mean) / (alpha**2 * std**2 + sigma**2)
        state = to_alpha * x0 + to_sigma * (state - alpha * x0) / sigma
    found = Sampler("ddim", steps).sample(gaussian((mean,), std, side=1), z)
    np.testing.assert_allclose(found.images.numpy(), state, atol=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("clip", [False, True])
def test_it_is_what_diffusers_gives_when_it_is_told_the_prediction_itself(prediction, clip) -> None:
    model = toy(prediction=prediction, clip=clip)
    if prediction == "epsilon":
        model.schedule = NoiseSchedule(model.schedule.alphas_cumprod.clamp(min=1e-3))  # x0 = (z − σ ε)/α at its end
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=64,
        trained_betas=model.schedule.betas().tolist(),
        prediction_type=prediction,
        clip_sample=clip,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(8)
    state = z = normal(3, 1, 4, 4, dtype=torch.float32)
    with torch.no_grad():
        for now in scheduler.timesteps:
            output = model(state, int(now), LABELS)
            state = scheduler.step(output, now, state, use_clipped_model_output=True).prev_sample
    found = Sampler("ddim", 8).sample(model, z, LABELS).images
    torch.testing.assert_close(found, state, rtol=1e-3, atol=1e-3)  # diffusers multiplies betas up in float32


# --- the other kinds ---


def test_samplers_converge_to_the_closed_form_of_gaussian_data() -> None:
    z, mean, std = normal(16, 1, 2, 2), 0.3, 0.5
    truth = flow(z, mean, std)
    error = {}
    for kind, steps in [("ddim", 50), ("ddim", 200), ("ddim", 800), ("dpm-solver", 200), ("euler", 800)]:
        found = Sampler(kind, steps).sample(gaussian((mean,), std), z).images
        error[kind, steps] = (found - truth).abs().max().item()
    assert error["ddim", 800] < 5e-3
    assert 3 < error["ddim", 50] / error["ddim", 200] < 5  # first order
    assert 3 < error["ddim", 200] / error["ddim", 800] < 5
    assert error["dpm-solver", 200] < error["ddim", 800]
    assert error["euler", 800] < 2e-2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_one_step_is_the_prediction_at_the_last_time(kind, prediction) -> None:
    model, z = gaussian(prediction=prediction), normal(3, 1, 2, 2)
    found = Sampler(kind, 1).sample(model, z, record=True)
    assert model.network.times == [1599]
    expected = gaussian(prediction=prediction).predict(z, 1599).x0
    torch.testing.assert_close(found.x0s[0], expected, rtol=0, atol=1e-4)  # Euler's z, 4096 times as large, is float32
    torch.testing.assert_close(found.images, expected, rtol=0, atol=1e-2 if kind == "euler" else 1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_prediction_is_the_image(kind) -> None:
    model, z = toy(), normal(3, 1, 4, 4, dtype=torch.float32)
    found = Sampler(kind, 4).sample(model, z, LABELS, generators=generators(3, 0), record=True)
    assert found.x0s.shape == (4, 3, 1, 4, 4)
    assert found.times.tolist() == [63, 47, 31, 15]
    assert found.x0s.abs().max() <= 1
    if kind == "euler":
        torch.testing.assert_close(found.images, found.x0s[-1], rtol=0, atol=1e-4)
    else:
        assert torch.equal(found.images, found.x0s[-1])
    assert commitment(found.x0s)[-1] < 1e-6


def test_predictions_of_gaussian_data_are_posterior_means_along_the_path() -> None:
    model, z = gaussian((0.3,), 0.5), normal(3, 1, 2, 2)
    sampler, state = Sampler("ddim", 4), z
    found = sampler.sample(model, z, record=True).x0s
    for index, time in enumerate(model.schedule.trailing(4).tolist()):
        alpha2 = model.schedule.alphas_cumprod[time].item()
        alpha, sigma2 = math.sqrt(alpha2), 1 - alpha2
        mean = (0.3 / 0.25 + alpha / sigma2 * state) / (1 / 0.25 + alpha2 / sigma2)
        torch.testing.assert_close(found[index], mean, rtol=0, atol=1e-8)
        state = sampler.run(model, z, last=index + 1).images


def test_a_consistency_sampler_adds_noise_anew_to_the_prediction() -> None:
    model, z = toy(steps=64), normal(3, 1, 4, 4, dtype=torch.float32)
    for steps in (4, 64):  # the last of 64 steps is at time 0, where a latent consistency model would return its input
        found = Sampler("consistency", steps).sample(model, z, LABELS, generators=generators(3, 7), record=True)
        drawn = generators(3, 7)
        state = z
        for index, time in enumerate(found.times.tolist()):
            x0 = model.predict(state, time, LABELS).x0.detach().clamp(-1, 1)
            torch.testing.assert_close(found.x0s[index], x0, rtol=0, atol=1e-5)
            if index + 1 < steps:
                fresh = torch.cat([torch.randn(1, 1, 4, 4, generator=g) for g in drawn])
                state = model.schedule.add_noise(x0, fresh, int(found.times[index + 1]))
        assert torch.equal(found.images, found.x0s[-1])
        assert found.calls == steps


def test_ddim_with_eta_one_keeps_the_spread_of_gaussian_data() -> None:
    model = gaussian((0.3,), 0.5, side=16)
    found = Sampler("ddim", 100, eta=1.0).sample(model, normal(20, 1, 16, 16), generators=generators(20, 0)).images
    assert found.mean().item() == pytest.approx(0.3, abs=0.03)
    assert found.std().item() == pytest.approx(0.5, abs=0.03)
    other = Sampler("ddim", 100, eta=1.0).sample(model, normal(20, 1, 16, 16), generators=generators(20, 1)).images
    assert (found - other).abs().mean() > 0.1


# --- guidance, modes, counting ---


@pytest.mark.parametrize("kind", ["ddim", "dpm-solver"])
def test_guidance_counts_twice_and_one_is_the_plain_model(kind) -> None:
    model, z = toy(), normal(3, 1, 4, 4, dtype=torch.float32)
    plain = Sampler(kind, 4).sample(model, z, LABELS)
    assert (plain.calls, model.calls) == (4, 4)
    assert torch.equal(plain.images, Sampler(kind, 4, guidance=1.0).sample(model, z, LABELS).images)
    guided = Sampler(kind, 4, guidance=2.0).sample(model, z, LABELS, batch_size=2)
    assert guided.calls == 8
    assert not torch.equal(guided.images, plain.images)


def test_guided_gaussian_data_moves_by_the_guided_mean() -> None:
    # Classes of one variance: x0 is affine in the mean, so guidance w has the mean m∅ + w (m − m∅).
    model, z = gaussian((0.5, -0.2, 0.1), 0.5), normal(4, 1, 2, 2)
    found = Sampler("ddim", 8, guidance=3.0).sample(model, z, torch.tensor([0, 1, 0, 1])).images
    for label, mean in ((0, 0.1 + 3 * 0.4), (1, 0.1 - 3 * 0.3)):
        plain = Sampler("ddim", 8).sample(gaussian((mean,), 0.5), z[label::2]).images
        torch.testing.assert_close(found[label::2], plain, rtol=0, atol=1e-8)


def test_sampling_has_no_gradient_no_drop_out_and_leaves_the_model_alone() -> None:
    model, z = toy().train(), normal(3, 1, 4, 4, dtype=torch.float32).requires_grad_()
    model.network.first.eval()
    before = hash_state(model.state_dict())
    found = Sampler("ddim", 4).sample(model, z, LABELS, record=True)
    assert not found.images.requires_grad
    assert model.network.modes == [False] * 4
    assert model.training
    assert not model.network.first.training
    assert hash_state(model.state_dict()) == before
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_sampling_is_deterministic_and_draws_from_no_global_generator(kind) -> None:
    model, z = toy(), normal(3, 1, 4, 4, dtype=torch.float32)
    state = torch.get_rng_state()
    first = Sampler(kind, 4).sample(model, z, LABELS, generators=generators(3, 5))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    again = Sampler(kind, 4).sample(model, z, LABELS, generators=generators(3, 5))
    assert torch.equal(first.images, again.images)


@pytest.mark.parametrize("kind", KINDS)
def test_a_scheduler_is_built_once_and_no_run_leaves_a_trace_in_the_next(kind) -> None:
    model, z, sampler = toy(), normal(7, 1, 4, 4, dtype=torch.float32), Sampler(kind, 4)

    def sampled(start: int) -> torch.Tensor:
        part = slice(start, start + 2)
        return sampler.sample(model, z[part], LABELS[:2], generators=generators(2, 5, first=start)).images

    anew = []
    for start in range(0, 6, 2):
        _scheduler.cache_clear()
        anew.append(sampled(start))
    _scheduler.cache_clear()
    kept = [sampled(0)]
    sampler.run(model, z[6:], LABELS[:1], last=2, generators=generators(1, 5))  # one that stops on the way
    Sampler(kind, 2).sample(model, z[:1], LABELS[:1], generators=generators(1, 5))  # other steps, the same tables
    kept += [sampled(start) for start in range(2, 6, 2)]
    assert _scheduler.cache_info().misses == 1
    assert all(torch.equal(a, b) for a, b in zip(kept, anew, strict=True))
    other, again = sampler.scheduler(model.schedule), sampler.scheduler(NoiseSchedule.cosine(model.schedule.steps))
    assert _scheduler.cache_info().misses == 2  # another schedule has tables of its own
    assert torch.equal(other.alphas_cumprod, again.alphas_cumprod)


@pytest.mark.parametrize("kind", ["ddim", "consistency"])
def test_a_sampler_of_parts_is_the_whole(kind) -> None:
    model, z = toy(), normal(3, 1, 4, 4, dtype=torch.float32)
    sampler, drawn = Sampler(kind, 4), generators(3, 5)
    whole = sampler.sample(model, z, LABELS, generators=generators(3, 5))
    half = sampler.run(model, z, LABELS, last=2, generators=drawn)
    rest = sampler.run(model, half.images, LABELS, first=2, generators=drawn)
    assert torch.equal(rest.images, whole.images)
    assert half.times.tolist() + rest.times.tolist() == whole.times.tolist()
    empty = sampler.run(model, z, LABELS, first=2, last=2, generators=drawn, record=True)
    assert torch.equal(empty.images, z)
    assert (empty.calls, empty.x0s.shape[0]) == (0, 0)


def test_euler_stops_at_a_noisy_image_of_the_common_kind() -> None:
    model, z = gaussian(), normal(3, 1, 2, 2)
    fine = Sampler("euler", 800).run(model, z, last=400).images
    alpha2, mean, std = model.schedule.alphas_cumprod[799].item(), 0.3, 0.5
    kept = (z - 2.0**-12 * mean) / math.sqrt(2.0**-24 * std**2 + 1 - 2.0**-24)
    torch.testing.assert_close(
        fine, math.sqrt(alpha2) * mean + math.sqrt(alpha2 * std**2 + 1 - alpha2) * kept, rtol=0, atol=2e-2
    )


# --- noise ---


def test_noise_of_an_image_does_not_depend_on_the_batch() -> None:
    whole = noise(7, (2, 3, 4), 5)
    assert whole.shape == (7, 2, 3, 4)
    assert whole.dtype == torch.float32
    assert torch.equal(torch.cat([noise(3, (2, 3, 4), 5), noise(4, (2, 3, 4), 5, first=3)]), whole)
    assert not torch.equal(noise(7, (2, 3, 4), 6), whole)
    assert len({image.numpy().tobytes() for image in whole}) == 7
    large = noise(40, (1, 28, 28), 0)
    assert large.mean().abs().item() < 0.02
    assert large.std().item() == pytest.approx(1, abs=0.02)


def test_batches_and_their_generators_give_the_same_images() -> None:
    model = toy()
    z, labels = noise(5, (1, 4, 4), 0), class_labels(5, 3)
    for kind in ("ddim", "consistency"):
        whole = Sampler(kind, 4).sample(model, z, labels, generators=generators(5, 0), record=True)
        parts = Sampler(kind, 4).sample(model, z, labels, generators=generators(5, 0), record=True, batch_size=2)
        torch.testing.assert_close(parts.images, whole.images, rtol=0, atol=1e-5)
        torch.testing.assert_close(parts.x0s, whole.x0s, rtol=0, atol=1e-5)
        assert parts.calls == whole.calls == 4
        tail = Sampler(kind, 4).sample(model, z[3:], labels[3:], generators=generators(2, 0, first=3))
        torch.testing.assert_close(tail.images, whole.images[3:], rtol=0, atol=1e-5)


def test_what_is_drawn_on_the_way_is_not_the_starting_noise() -> None:
    start = noise(1, (1, 4, 4), 0)[0]
    assert not torch.equal(torch.randn(1, 4, 4, generator=generators(1, 0)[0]), start)
    assert torch.equal(torch.randn(1, 4, 4, generator=generators(1, 0, stream="noise")[0]), start)


def test_labels_go_round_the_classes() -> None:
    assert class_labels(5, 3).tolist() == [0, 1, 2, 0, 1]
    assert class_labels(2, 3, first=5).tolist() == [2, 0]


# --- mistakes ---


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(kind="dimm"), "did you mean 'ddim'"),
        (dict(steps=0), "takes 1 step or more; got steps=0"),
        (dict(steps=2.5), "takes 1 step or more"),
        (dict(guidance=math.nan), "guidance is a finite number"),
        (dict(eta=2.0), r"eta is in \[0, 1\]"),
        (dict(kind="euler", eta=0.5), "of sampler 'ddim' alone"),
    ],
)
def test_bad_options_are_told(options, said) -> None:
    with pytest.raises((ConfigError, UnknownName), match=said):
        Sampler(**options)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_that_do_not_divide_the_schedule_are_told(kind) -> None:
    with pytest.raises(ConfigError, match="3 sampling steps do not divide the schedule's 64"):
        Sampler(kind, 3).sample(toy(), normal(1, 1, 4, 4), LABELS[:1], generators=generators(1, 0))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_not_numbers_are_one_clear_error(kind, value) -> None:
    model = toy()
    model.network.last.bias.data.fill_(value)
    with pytest.raises(UserError, match="sampling stopped at time 63: the network gives NaN or infinity"):
        Sampler(kind, 4).sample(model, normal(2, 1, 4, 4, dtype=torch.float32), LABELS[:2], generators=generators(2, 0))


def test_other_mistakes_are_told() -> None:
    model, z = toy(), normal(3, 1, 4, 4, dtype=torch.float32)
    with pytest.raises(ConfigError, match="class 4 is out of range"):
        Sampler("ddim", 4).sample(model, z, LABELS + 2)
    for drawn in (None, generators(2, 0)):
        for sampler in (Sampler("consistency", 4), Sampler("ddim", 4, eta=1.0)):
            with pytest.raises(ConfigError, match="one generator for each of 3 images"):
                sampler.sample(model, z, LABELS, generators=drawn)
    with pytest.raises(ConfigError, match="batch_size of 1 or more"):
        Sampler("ddim", 4).sample(model, z, LABELS, batch_size=0)
    with pytest.raises(ConfigError, match="batch_size of 1 or more"):
        Sampler("ddim", 4).sample(model, z[:0])
    for bounds in (dict(first=5), dict(first=3, last=2), dict(last=5), dict(first=-1)):
        with pytest.raises(ConfigError, match="a sampler of 4 steps cannot run from"):
            Sampler("ddim", 4).run(model, z, LABELS, **bounds)
    with pytest.raises(ConfigError, match="count of images is 1 or more"):
        noise(0, (1, 4, 4), 0)
    with pytest.raises(ConfigError, match="1 image and 1 class"):
        class_labels(3, 0)
