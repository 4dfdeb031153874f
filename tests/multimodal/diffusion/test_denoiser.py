"""A denoiser: guidance, the null class, what it counts, and the exact one of Gaussian data."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from limbeck.engine.pixels import input_of
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName
from limbeck.multimodal.diffusion.denoiser import Denoiser
from limbeck.multimodal.diffusion.schedule import PREDICTIONS, NoiseSchedule
from tests.multimodal.diffusion.toys import ToyNetwork, gaussian, normal, toy

LABELS = torch.tensor([2, 0, 1])


def batch(seed: int = 0) -> torch.Tensor:
    return normal(3, 1, 4, 4, seed=seed, dtype=torch.float32)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_prediction_of_gaussian_data_is_the_posterior_mean(prediction) -> None:
    model = gaussian((0.3,), 0.5, prediction)
    schedule, t = model.schedule, torch.tensor([1500, 800, 5])
    x, noise = 0.3 + 0.5 * normal(3, 1, 2, 2), normal(3, 1, 2, 2, seed=1)
    z = schedule.add_noise(x, noise, t)
    found = model.predict(z, t)
    a2, s2 = schedule.alphas_cumprod[t].reshape(-1, 1, 1, 1), 1 - schedule.alphas_cumprod[t].reshape(-1, 1, 1, 1)
    # Precisions add up: the prior's 1/s² at m, the observation's α²/σ² at z/α.
    x0 = (0.3 / 0.25 + (a2.sqrt() / s2) * z) / (1 / 0.25 + a2 / s2)
    torch.testing.assert_close(found.x0, x0, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.epsilon, (z - a2.sqrt() * x0) / s2.sqrt(), rtol=0, atol=1e-7)
    torch.testing.assert_close(found.v, a2.sqrt() * found.epsilon - s2.sqrt() * x0, rtol=0, atol=1e-7)


def test_guidance_one_is_the_conditional_model_bit_for_bit_in_one_call() -> None:
    model, z, t = toy(), batch(), torch.tensor([3, 40, 63])
    plain = model.predict(z, t, LABELS)
    assert model.calls == 1
    assert torch.equal(plain.output, model(z, t, LABELS))
    assert torch.equal(plain.x0, model.predict(z, t, LABELS, guidance=1.0).x0)
    assert model.calls == 3


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("guidance", [0.0, 0.5, 3.0])
def test_guidance_extrapolates_x0_from_the_null_class(prediction, guidance) -> None:
    model, z, t = toy(prediction=prediction).double(), batch().double(), torch.tensor([3, 40, 60])
    conditional, null = model.predict(z, t, LABELS), model.predict(z, t, None)
    before = model.calls
    found = model.predict(z, t, LABELS, guidance=guidance)
    assert model.calls == before + 2
    for name in ("x0", "epsilon", "v"):
        c, n = getattr(conditional, name), getattr(null, name)
        torch.testing.assert_close(getattr(found, name), n + guidance * (c - n), rtol=1e-9, atol=1e-9)


def test_guidance_is_one_batch_of_both_halves() -> None:
    model = gaussian((0.5, -0.5, 0.0))
    z = normal(3, 1, 2, 2)
    model.predict(z, 700, torch.tensor([0, 1, 0]), guidance=2.0)
    assert model.network.batches == [6]
    assert model.calls == 2


def test_no_labels_are_the_null_class() -> None:
    model, z = toy(), batch()
    assert model.null_label == 3
    assert torch.equal(model(z, 20), model(z, torch.full((3,), 20), torch.full((3,), 3)))
    assert not torch.equal(model(z, 20), model(z, 20, LABELS))


@pytest.mark.parametrize(("labels", "said"), [([0, 4, 1], "class 4"), ([0, 1, -1], "class -1")])
def test_labels_out_of_range_are_told(labels, said) -> None:
    with pytest.raises(ConfigError, match=rf"{said} is out of range: .* 0 … 2, and 3 for no class"):
        toy()(batch(), 20, torch.tensor(labels))


def test_labels_are_integers_one_an_image() -> None:
    for labels in (torch.zeros(3), torch.zeros(2, dtype=torch.int64), torch.zeros(3, 1, dtype=torch.int64)):
        with pytest.raises(ConfigError, match=r"labels are integers of shape \(3,\)"):
            toy()(batch(), 20, labels)


def test_an_unconditional_network_takes_no_labels_and_no_guidance() -> None:
    model = toy(num_classes=None)
    assert model(batch(), 20).shape == (3, 1, 4, 4)
    with pytest.raises(ConfigError, match="unconditional: it takes no labels"):
        model(batch(), 20, LABELS)
    with pytest.raises(ConfigError, match="no null class"):
        model.predict(batch(), 20, guidance=2.0)


def test_guidance_needs_labels_and_a_null_class() -> None:
    with pytest.raises(ConfigError, match=r"guidance 2.0 needs labels"):
        toy().predict(batch(), 20, guidance=2.0)
    model = Denoiser(ToyNetwork(num_classes=2), NoiseSchedule.cosine(64), num_classes=3, image_size=4, null_class=False)
    assert model(batch(), 20, LABELS).shape == (3, 1, 4, 4)
    for call in (lambda: model.predict(batch(), 20, LABELS, guidance=2.0), lambda: model(batch(), 20)):
        with pytest.raises(ConfigError, match="no null class"):
            call()
    with pytest.raises(ConfigError, match=r"class 3 is out of range: .* has classes 0 … 2$"):
        model(batch(), 20, LABELS + 1)


def test_predictions_are_never_clamped_and_carry_gradients() -> None:
    model, z = toy(), (10 * batch()).requires_grad_()
    found = model.predict(z, 20, LABELS)
    assert found.x0.abs().max() > 1.5
    found.x0.square().mean().backward()
    assert z.grad is not None
    assert z.grad.abs().sum() > 0
    assert all(p.grad is not None for p in model.network.parameters())


def test_state_is_the_networks_alone() -> None:
    model = toy()
    assert {k.split(".")[0] for k in model.state_dict()} == {"network"}
    model(batch(), 20, LABELS)
    shadow = deepcopy(model)
    assert shadow.schedule.same_as(model.schedule)
    shadow(batch(), 20, LABELS)
    assert (model.calls, shadow.calls) == (1, 2)
    normalization, size = input_of(model)
    assert size == (1, 4, 4)
    assert (normalization.mean, normalization.std) == ((0.5,), (0.5,))


def test_half_precision_leaves_the_schedule_exact() -> None:
    model, z = toy(), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model.predict(z, 63, LABELS)
    assert found.x0.dtype == torch.float32
    assert found.alpha.flatten()[0].item() == 2.0**-12


def test_what_a_network_may_give() -> None:
    class Plain(nn.Module):
        def forward(self, z, t):
            return 2 * z

    model = Denoiser(Plain(), NoiseSchedule.cosine(8), "sample", image_size=(2, 3), channels=2)
    assert torch.equal(model.predict(torch.ones(1, 2, 2, 3), 4).x0, torch.full((1, 2, 2, 3), 2.0))
    with pytest.raises(ShapeMismatch, match=r"takes images \(B, 2, 2, 3\); got \(1, 2, 3, 2\)"):
        model(torch.ones(1, 2, 3, 2), 4)


def test_bad_arguments_are_told() -> None:
    with pytest.raises(UnknownName, match="prediction 'eps'"):
        Denoiser(ToyNetwork(), NoiseSchedule.cosine(8), "eps")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="num_classes of a denoiser is 1 or more"):
        Denoiser(ToyNetwork(), NoiseSchedule.cosine(8), num_classes=0)
