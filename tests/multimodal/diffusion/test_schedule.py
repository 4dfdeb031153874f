"""The cosine schedule against its formula, DDIM against the definition, grids, conversions, mistakes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from limbeck.errors import ConfigError, UnknownName
from limbeck.multimodal.diffusion.schedule import (
    FLOOR,
    PREDICTIONS,
    NoiseSchedule,
    schedule_of,
    to_epsilon,
    to_v,
    to_x0,
)
from tests.multimodal.diffusion.toys import normal

WIDE = torch.float64


def test_cosine_is_its_formula_and_variance_preserving() -> None:
    schedule = NoiseSchedule.cosine(1600)
    assert schedule.steps == 1600
    t = torch.arange(-1, 1600)
    alpha, sigma = schedule.alpha(t, WIDE), schedule.sigma(t, WIDE)
    assert alpha.shape == (1601, 1, 1, 1)
    torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones_like(alpha), rtol=0, atol=1e-15)
    angle = np.pi / 2 * np.arange(0, 1600) / 1600  # all times but the last, which is clipped
    np.testing.assert_allclose(alpha.flatten().numpy()[:-1], np.cos(angle), atol=1e-12)
    np.testing.assert_allclose(sigma.flatten().numpy()[:-1], np.sin(angle), atol=1e-12)
    assert alpha.flatten()[-1].item() == math.sqrt(FLOOR) == 2.0**-12
    assert (schedule.alphas_cumprod == FLOOR).sum() == 1  # the clip reaches nothing else
    assert alpha.flatten()[0] == 1
    assert sigma.flatten()[0] == 0


def test_snr_and_log_ratio_at_every_time() -> None:
    schedule = NoiseSchedule.cosine(64)
    t = torch.arange(64)
    tangent = np.tan(np.pi / 2 * np.arange(1, 65) / 64)
    tangent[-1] = math.sqrt((1 - FLOOR) / FLOOR)
    np.testing.assert_allclose(schedule.log_ratio(t, WIDE).flatten().numpy(), np.log(tangent), atol=1e-9)
    np.testing.assert_allclose(schedule.snr(t, WIDE).flatten().numpy(), tangent**-2.0, rtol=1e-9)
    clean = torch.tensor([-1])
    assert schedule.snr(clean).item() == math.inf
    assert schedule.log_ratio(clean).item() == -math.inf
    assert (schedule.log_ratio(t).flatten().diff() > 0).all()


def test_times_are_one_int_or_a_batch_and_dtype_is_asked_for() -> None:
    schedule = NoiseSchedule.cosine(64)
    assert schedule.alpha(5).shape == (1, 1, 1, 1)
    assert schedule.alpha(5).dtype == torch.float32
    batch = schedule.alpha(torch.tensor([5, -1], dtype=torch.int32), WIDE)
    assert batch[0].item() == schedule.alpha(5, WIDE).item()
    assert batch[1].item() == 1.0
    x, noise = normal(2, 1, 3, 3), normal(2, 1, 3, 3, seed=1)
    z = schedule.add_noise(x, noise, torch.tensor([5, -1]))
    assert z.dtype == WIDE
    torch.testing.assert_close(z[0], batch[0] * x[0] + schedule.sigma(5, WIDE)[0] * noise[0])
    assert torch.equal(z[1], x[1])
    assert schedule.add_noise(x.float(), noise.float(), 5).dtype == torch.float32


@pytest.mark.parametrize("t", [-2, 64, torch.tensor([0, 64]), torch.tensor([-2])])
def test_times_out_of_range_are_told(t) -> None:
    with pytest.raises(ConfigError, match=r"times of this noise schedule are -1 … 63"):
        NoiseSchedule.cosine(64).alpha(t)


def test_times_are_integers() -> None:
    with pytest.raises(ConfigError, match=r"are integers; got torch\.float32"):
        NoiseSchedule.cosine(64).sigma(torch.tensor([0.5]))


# --- DDIM ---


def test_ddim_is_alpha_x0_plus_sigma_epsilon() -> None:
    schedule = NoiseSchedule.cosine(64)
    z, x0 = normal(4, 1, 2, 2), normal(4, 1, 2, 2, seed=1)
    t, s = torch.tensor([63, 40, 10, 1]), torch.tensor([31, 39, -1, 0])
    found = schedule.ddim(z, x0, t, s).numpy()
    for b in range(4):
        here, there = (math.pi / 2 * (int(time[b]) + 1) / 64 for time in (t, s))
        alpha = max(math.cos(here), 2.0**-12)
        epsilon = (z[b] - alpha * x0[b]) / math.sqrt(1 - alpha**2)
        np.testing.assert_allclose(found[b], (math.cos(there) * x0[b] + math.sin(there) * epsilon).numpy(), atol=1e-12)


def test_ddim_to_clean_is_x0_and_to_the_same_time_is_z_and_steps_compose_for_constant_x0() -> None:
    schedule = NoiseSchedule.cosine(64)
    z, x0 = normal(2, 1, 2, 2), normal(2, 1, 2, 2, seed=1)
    assert torch.equal(schedule.ddim(z, x0, 20, -1), x0)
    torch.testing.assert_close(schedule.ddim(z, x0, 20, 20), z, rtol=0, atol=1e-15)
    twice = schedule.ddim(schedule.ddim(z, x0, 63, 30), x0, 30, 7)
    torch.testing.assert_close(twice, schedule.ddim(z, x0, 63, 7), rtol=0, atol=1e-14)


def test_ddim_has_gradients_to_both_and_no_step_from_the_clean_image() -> None:
    schedule = NoiseSchedule.cosine(64)
    z, x0 = normal(1, 1, 2, 2).requires_grad_(), normal(1, 1, 2, 2, seed=1).requires_grad_()
    schedule.ddim(z, x0, 20, 10).sum().backward()
    ratio = math.sin(math.pi * 11 / 128) / math.sin(math.pi * 21 / 128)
    torch.testing.assert_close(z.grad, torch.full_like(z, ratio))
    rest = math.cos(math.pi * 11 / 128) - math.cos(math.pi * 21 / 128) * ratio
    torch.testing.assert_close(x0.grad, torch.full_like(z, rest))
    with pytest.raises(ConfigError, match="starts from a noisy image"):
        schedule.ddim(z, x0, -1, -1)


# --- grids ---


def test_trailing_is_diffusers_and_nested() -> None:
    schedule = NoiseSchedule.cosine(1600)
    assert schedule.trailing(4).tolist() == [1599, 1199, 799, 399]
    assert schedule.trailing(1).tolist() == [1599]
    assert schedule.trailing(4).dtype == torch.int64
    for steps in (1, 2, 4, 8, 16, 32, 25):
        assert torch.equal(schedule.trailing(2 * steps)[::2], schedule.trailing(steps))
    assert torch.equal(schedule.trailing(1600), torch.arange(1599, -1, -1))


@pytest.mark.parametrize("steps", [0, -1, 2.0, True])
def test_trailing_takes_one_step_or_more(steps) -> None:
    with pytest.raises(ConfigError, match="takes 1 step or more"):
        NoiseSchedule.cosine(64).trailing(steps)


def test_trailing_divides() -> None:
    with pytest.raises(ConfigError, match="3 sampling steps do not divide the schedule's 64"):
        NoiseSchedule.cosine(64).trailing(3)


# --- where schedules come from ---


def test_betas_multiply_up_to_the_schedule() -> None:
    schedule = NoiseSchedule.cosine(1600)
    betas = schedule.betas()
    assert ((betas > 0) & (betas < 1)).all()
    torch.testing.assert_close((1 - betas).cumprod(0), schedule.alphas_cumprod, rtol=1e-9, atol=0)


@pytest.mark.parametrize("values", [[], [[0.5]], [0.0], [1.0], [0.5, 0.6], [0.5, math.nan]])
def test_bad_tables_are_told(values) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1 and never rising"):
        NoiseSchedule(torch.tensor(values))


def test_schedules_of_diffusers_are_read_as_they_are() -> None:
    diffusers = pytest.importorskip("diffusers", reason="needs the 'multimodal' extra")
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    expected = scheduler.alphas_cumprod.double()
    for given in (scheduler, scheduler.config, dict(scheduler.config)):
        assert torch.equal(NoiseSchedule.of_scheduler(given).alphas_cumprod, expected)
    named = schedule_of(dict(type="DDIMScheduler", beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012))
    assert torch.equal(named.alphas_cumprod, expected)
    assert named.same_as(NoiseSchedule.of_scheduler(scheduler))
    assert not named.same_as(NoiseSchedule.of_scheduler(dict(beta_schedule="linear")))
    zero = diffusers.DDIMScheduler(rescale_betas_zero_snr=True)
    assert zero.alphas_cumprod[-1] == 0
    found = NoiseSchedule.of_scheduler(zero).alphas_cumprod
    assert 0 < found[-1] == found[-2] < FLOOR  # diffusers' 2⁻²⁴ would be more signal at the last time than before it
    assert torch.equal(found[:-1], zero.alphas_cumprod[:-1].double())
    few = diffusers.DDIMScheduler(num_train_timesteps=10, rescale_betas_zero_snr=True)
    assert NoiseSchedule.of_scheduler(few).alphas_cumprod[-1] == FLOOR


def test_a_schedule_that_is_not_variance_preserving_is_told() -> None:
    pytest.importorskip("diffusers", reason="needs the 'multimodal' extra")
    with pytest.raises(ConfigError, match="EDMEulerScheduler has no alphas_cumprod"):
        schedule_of(dict(type="EDMEulerScheduler"))
    with pytest.raises(UnknownName, match="did you mean 'DDIMScheduler'"):
        schedule_of(dict(type="DDIMSheduler"))
    with pytest.raises(ConfigError, match="does not take these arguments"):
        schedule_of(dict(type="DDIMScheduler", stepps=3))
    with pytest.raises(ConfigError, match="does not take these arguments"):
        schedule_of(dict(type="DDIMScheduler", beta_schedule="no such"))


def test_cosine_by_config() -> None:
    assert schedule_of(dict(type="cosine", steps=8)).steps == 8
    assert schedule_of(dict(type="cosine")).steps == 1600
    with pytest.raises(UnknownName, match="'step'"):
        schedule_of(dict(type="cosine", step=8))
    with pytest.raises(ConfigError, match="needs a 'type'"):
        schedule_of(dict(steps=8))
    with pytest.raises(ConfigError, match="1 step or more"):
        schedule_of(dict(type="cosine", steps=0))


# --- conversions ---


@pytest.mark.parametrize("dtype", [torch.float32, WIDE])
def test_conversions_are_the_definitions_and_round_trip(dtype) -> None:
    schedule = NoiseSchedule.cosine(1600)
    t = torch.tensor([0, 3, 200, 800, 1400, 1550])
    x, noise = normal(6, 2, 3, 3, dtype=dtype), normal(6, 2, 3, 3, seed=1, dtype=dtype)
    alpha, sigma = schedule.alpha(t, dtype), schedule.sigma(t, dtype)
    z = schedule.add_noise(x, noise, t)
    truth = {"sample": x, "epsilon": noise, "v_prediction": alpha * noise - sigma * x}
    # Dividing by the smaller of α and σ, about 1e-3, is what costs digits.
    tolerance = dict(rtol=0, atol=2e-3 if dtype == torch.float32 else 1e-11)
    makers = {"sample": to_x0, "epsilon": to_epsilon, "v_prediction": to_v}
    for source in PREDICTIONS:
        for target, make in makers.items():
            made = make(truth[source], z, alpha, sigma, source)
            torch.testing.assert_close(made, truth[target], **tolerance)
            back = makers[source](made, z, alpha, sigma, target)
            torch.testing.assert_close(back, truth[source], **tolerance)
        assert makers[source](truth[source], z, alpha, sigma, source) is truth[source]


def test_v_is_defined_at_both_ends() -> None:
    schedule = NoiseSchedule.cosine(64)
    z, v = normal(1, 1, 2, 2), normal(1, 1, 2, 2, seed=1)
    clean = schedule.alpha(-1, WIDE), schedule.sigma(-1, WIDE)
    assert torch.equal(to_x0(v, z, *clean, "v_prediction"), z)  # a consistency model's boundary, for free
    noisy = schedule.alpha(63, WIDE), schedule.sigma(63, WIDE)
    torch.testing.assert_close(to_x0(v, z, *noisy, "v_prediction"), -v, rtol=0, atol=1e-3)


def test_unknown_predictions_are_told() -> None:
    one = torch.ones(1, 1, 1, 1)
    for convert in (to_x0, to_epsilon, to_v):
        with pytest.raises(UnknownName, match="did you mean 'v_prediction'"):
            convert(one, one, one, one, "v_predict")  # type: ignore[arg-type]
