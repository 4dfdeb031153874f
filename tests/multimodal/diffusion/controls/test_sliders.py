"""Sliders: the loss against one written anew, what training touches, control and transfer on drawn bars, mistakes."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("diffusers", reason="needs the 'multimodal' extra")

from limbeck.engine.weights import hash_state
from limbeck.errors import ConfigError, DeadLoss, NonFiniteLoss, ShapeMismatch, UnknownName
from limbeck.multimodal.diffusion.controls.sliders import (
    SCALES,
    ControlCurve,
    LowRankAdapter,
    Pairs,
    TrainedSlider,
    control_curve,
    halves,
    slider_loss,
    train_slider,
    transfer_ratio,
)
from limbeck.multimodal.diffusion.denoiser import Denoiser
from limbeck.multimodal.diffusion.samplers import Sampler, class_labels, noise
from limbeck.multimodal.diffusion.schedule import NoiseSchedule
from tests.multimodal.diffusion.toys import ToyNetwork, gaussian, normal, toy

LABELS = class_labels(64, 2)
NOISE = noise(64, (1, 4, 4), seed=3)


def bars(count: int = 512) -> tuple[Tensor, Tensor]:
    """The left (class 0) or right half of 4 × 4 pixels, inked evenly in [0, 1]; classes take turns."""
    labels = torch.arange(count) % 2
    ink = torch.rand(count, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    where = torch.zeros(2, 1, 4, 4)
    where[0, ..., :2] = where[1, ..., 2:] = 1
    return 2 * ink * where[labels] - 1, labels


def side(images: Tensor) -> Tensor:
    """Logits (B, 2): which half has more ink."""
    return torch.stack([images[..., :2].sum((1, 2, 3)), images[..., 2:].sum((1, 2, 3))], 1)


@pytest.fixture(scope="module")
def base() -> Denoiser:
    """Trained on the bars, by v."""
    network = ToyNetwork(num_classes=2, width=24)
    model = Denoiser(network, NoiseSchedule.cosine(64), "v_prediction", 2, 4, 1).eval()
    images, labels = bars()
    draw, schedule = torch.Generator().manual_seed(1), model.schedule
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(300):
        k = torch.randint(len(images), (64,), generator=draw)
        t = torch.randint(64, (64,), generator=draw)
        e = torch.randn(64, 1, 4, 4, generator=draw)
        v = schedule.alpha(t) * e - schedule.sigma(t) * images[k]
        loss = F.mse_loss(model.predict(schedule.add_noise(images[k], e, t), t, labels[k]).v, v)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    return model


def near_copy(model: Denoiser, amount: float = 0.05) -> Denoiser:
    """Every weight moved a little, as a student's that began as a copy."""
    student, draw = copy.deepcopy(model), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in student.parameters():
            value += amount * value.square().mean().sqrt() * torch.randn(value.shape, generator=draw)
    return student


def slider(model: Denoiser, **changes: Any) -> TrainedSlider:
    """On convolutions alone, so that it has to work through the image."""
    pairs = halves(*bars(), "ink_mass")
    return train_slider(model, pairs, **{**dict(steps=120, batch_size=48, lr=1e-2, layers="first|last"), **changes})


@pytest.fixture(scope="module")
def trained(base) -> TrainedSlider:
    return slider(base)


# --- the loss ---


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_loss_written_anew(kind) -> None:
    """With ToyNetwork's forward by hand, adapted weights W ± (α/r) B A, in float64."""
    model = toy(num_classes=2, prediction="v_prediction").double()
    adapter = LowRankAdapter.of(model, rank=4, alpha=0.7, layers="first|last")
    for part in (adapter.down, adapter.up):
        for index, name in enumerate(part):
            part[name] = nn.Parameter(normal(*part[name].shape, seed=index))
    low, high, e = normal(3, 1, 4, 4, seed=1), normal(3, 1, 4, 4, seed=2), normal(3, 1, 4, 4, seed=3)
    t, labels = torch.tensor([0, 31, 60]), torch.tensor([0, 1, 2])
    with adapter.on(model) as switch:
        found = slider_loss(model, switch, low, high, t, e, labels, kind)

    bar = np.clip(np.cos(np.pi / 2 * (t.numpy() + 1) / 64) ** 2, 2**-24, None)
    a, s = (torch.from_numpy(np.sqrt(x)).reshape(3, 1, 1, 1) for x in (bar, 1 - bar))
    network: Any = model.network
    expected = 0.0
    for sign, x in ((1, high), (-1, low)):
        w1, w2 = (
            layer.weight + sign * 0.7 / 1 * torch.einsum("or,rikl->oikl", adapter.up[n][..., 0, 0], adapter.down[n])
            for n, layer in (("first", network.first), ("last", network.last))
        )
        z = a * x + s * e
        angle = t[:, None].double() / 200
        shift = F.linear(torch.cat([angle.sin(), angle.cos()], 1), network.time.weight, network.time.bias)
        shift = (shift + network.label.weight[labels])[:, :, None, None]
        hidden = torch.relu(F.conv2d(z, w1, network.first.bias, padding=1) + shift)
        v = F.conv2d(hidden, w2, network.last.bias, padding=1)
        error = {
            "epsilon": s * z + a * v - e,
            "v_prediction": v - (a * e - s * x),
            "sample": a * z - s * v - x,
        }[kind]
        expected += float(error.detach().square().sum()) / error.numel()
    assert float(found.detach()) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_how_the_losses_weigh_one_error(kind) -> None:
    model = toy(num_classes=2).double()
    adapter = LowRankAdapter.of(model)
    t = torch.full((2,), 50)
    args = (normal(2, 1, 4, 4, seed=1), normal(2, 1, 4, 4, seed=2), t, normal(2, 1, 4, 4, seed=3), t % 2)
    with adapter.on(model) as switch:
        epsilon = float(slider_loss(model, switch, *args).detach())
        other = float(slider_loss(model, switch, *args, kind).detach())
    alpha, sigma = (float(f(50, torch.float64)) for f in (model.schedule.alpha, model.schedule.sigma))
    factor = {"v_prediction": alpha**2, "sample": (alpha / sigma) ** 2}[kind]
    assert epsilon == pytest.approx(factor * other, rel=1e-9)


# --- training ---


def test_only_the_adapter_is_trained(base) -> None:
    mixed = copy.deepcopy(base).train()
    mixed.network.last.requires_grad_(False)
    asked = [p.requires_grad for p in mixed.parameters()]
    before = hash_state(mixed.state_dict())
    start = LowRankAdapter.of(mixed, layers="first|last").state_dict()
    found = slider(mixed, steps=3)
    assert hash_state(mixed.state_dict()) == before
    assert all(p.grad is None or not p.grad.any() for p in mixed.parameters())
    assert [p.requires_grad for p in mixed.parameters()] == asked
    assert mixed.training
    assert not any(mixed.network.modes[-6:])  # and yet without drop-out
    state = found.adapter.state_dict()
    assert state.keys() == start.keys()
    assert all(not torch.equal(state[k], start[k]) for k in start)
    assert found.losses.shape == (3,)


def test_training_is_its_seed(base) -> None:
    with torch.no_grad():  # training asks for gradients itself
        one = slider(base, steps=3, seed=4)
    torch.rand(7)
    again, other = slider(base, steps=3, seed=4), slider(base, steps=3, seed=5)
    assert hash_state(one.adapter.state_dict()) == hash_state(again.adapter.state_dict())
    assert torch.equal(one.losses, again.losses)
    assert not torch.equal(one.losses, other.losses)


def test_the_first_loss_is_the_bases_own_on_both_halves(base) -> None:
    """B is 0 at first: equal low and high images give twice the denoising loss of one."""
    images, labels = bars(2)
    pairs = Pairs(images, images, labels, labels)
    found = train_slider(base, pairs, steps=1, batch_size=4, times=[40], seed=2, show=False)
    draw = torch.Generator().manual_seed(2)
    low, _, drawn = pairs.draw(4, draw)
    torch.randint(1, (4,), generator=draw)
    e = torch.randn(low.shape, generator=draw)
    z = base.schedule.add_noise(low, e, 40)
    with torch.no_grad():
        expected = 2 * F.mse_loss(base.predict(z, 40, drawn).epsilon, e)
    torch.testing.assert_close(found.losses[0], expected)


def test_only_the_times_given_are_drawn(base, monkeypatch) -> None:
    seen: set[int] = set()
    plain = ToyNetwork.forward

    def spy(self: ToyNetwork, z: Tensor, t: Tensor, **labels: Any) -> Any:
        seen.update(t.tolist())
        return plain(self, z, t, **labels)

    monkeypatch.setattr(ToyNetwork, "forward", spy)
    slider(base, steps=3, times=base.schedule.trailing(2))
    assert seen == {31, 63}
    seen.clear()
    slider(base, steps=12)
    assert {min(seen), max(seen)} == {0, 63}


def test_an_unconditional_model(base) -> None:
    images, _ = bars(64)
    model = toy(num_classes=None)
    found = train_slider(model, halves(images, None, "width", share=0.25), steps=2, show=False)
    assert bool(torch.isfinite(found.losses).all())
    with pytest.raises(ConfigError, match="unconditional: it takes no labels"):
        train_slider(model, halves(*bars(64), "ink_mass"), steps=2)


# --- control, on the model it was trained on and on another ---


@torch.no_grad()
def test_training_lowers_the_loss(base, trained) -> None:
    draw = torch.Generator().manual_seed(8)
    low, high, labels = halves(*bars(), "ink_mass").draw(256, draw)
    args = (low, high, torch.arange(256) % 64, torch.randn(high.shape, generator=draw), labels)
    losses = []
    for adapter in (LowRankAdapter.of(base), trained.adapter):
        with adapter.on(base) as switch:
            losses.append(float(slider_loss(base, switch, *args)))
    assert losses[1] < losses[0]


@pytest.mark.parametrize("steps", [8, 2])
def test_a_slider_moves_its_attribute_and_not_the_class(base, trained, steps) -> None:
    sampler = Sampler("ddim", steps)
    curve = control_curve(base, trained.adapter, sampler, NOISE, LABELS, SCALES, "ink_mass", classifier=side)
    assert curve.means[1:].diff().min() > 0.03
    assert curve.rho is not None
    assert curve.rho >= 0.9  # at −2, beyond what was trained, there is next to no ink left to take
    pairs = halves(*bars(), "ink_mass")
    low, middle, high = (float(m) for m in curve.means[1:4])
    for found, images in ((low, pairs.low), (middle, bars()[0]), (high, pairs.high)):
        assert found == pytest.approx(float((images.mean() + 1) / 2), abs=0.07)  # 1/8, 1/4, 3/8 in truth
    assert curve.off_target is not None  # a side without ink is no side: upwards alone
    assert curve.off_target[2:].abs().max() <= 0.05


@pytest.mark.parametrize("steps", [8, 2, 1])
def test_it_transfers_to_a_student(base, trained, steps) -> None:
    student = near_copy(base)
    own = LowRankAdapter.of(student, layers="first|last")
    own.load_state_dict(trained.adapter.state_dict())
    curves = [
        control_curve(model, adapter, Sampler("ddim", steps), NOISE, LABELS, SCALES, "ink_mass")
        for model, adapter in ((base, trained.adapter), (student, trained.adapter), (student, own))
    ]
    assert not torch.equal(curves[0].values, curves[1].values)
    assert torch.equal(curves[1].values, curves[2].values)
    assert curves[1].slope > 0.05
    assert transfer_ratio(curves[1], curves[0]) == pytest.approx(1, abs=0.15)


def test_and_from_the_student_to_the_base(base) -> None:
    student = near_copy(base)
    before = hash_state(student.state_dict())
    adapter = slider(student, times=student.schedule.trailing(4), loss_on="v_prediction").adapter
    assert hash_state(student.state_dict()) == before
    curves = [
        control_curve(model, adapter, Sampler("ddim", steps), NOISE, LABELS, SCALES, "ink_mass")
        for model, steps in ((student, 4), (base, 8))
    ]
    assert curves[1].slope > 0.05
    assert transfer_ratio(curves[1], curves[0]) == pytest.approx(1, abs=0.25)


def test_scale_zero_is_plain_sampling_bit_for_bit(base, trained) -> None:
    for model in (base, near_copy(base)):
        before = hash_state(model.state_dict())
        options = dict(scales=(0, 1), attribute="ink_mass", keep_images=True)
        curve = control_curve(model, trained.adapter, Sampler("ddim", 4), NOISE, LABELS, **options)
        plain = Sampler("ddim", 4).sample(model, NOISE, LABELS).images
        assert curve.images is not None
        assert torch.equal(curve.images[0], plain)
        assert not torch.equal(curve.images[1], plain)
        assert hash_state(model.state_dict()) == before


def test_a_stochastic_sampler_draws_the_same_at_every_scale(base) -> None:
    still = LowRankAdapter.of(base)
    sampler = Sampler("consistency", 4)
    args = (base, still, sampler, NOISE[:6], LABELS[:6], (-1, 0, 1), "ink_mass")
    curve = control_curve(*args, seed=1)
    in_batches = control_curve(*args, seed=1, batch_size=4).values
    torch.testing.assert_close(in_batches, curve.values, rtol=0, atol=1e-6)  # kernels differ with the size of a batch
    assert torch.equal(curve.values[0], curve.values[2])
    assert (curve.values - control_curve(*args, seed=2).values).abs().max() > 1e-3
    assert (curve.slope, curve.rho) == (0, None)
    with pytest.raises(ConfigError, match="no effect on the base"):
        transfer_ratio(curve, curve)


# --- the curve's figures ---


def test_slope_rho_and_agreement_of_known_values() -> None:
    values = torch.tensor([[0.0, 2.0], [1.0, 5.0], [2.0, 12.0], [3.0, 1.0]], dtype=torch.float64)
    scales = (-1.0, 0.0, 2.0, 3.0)
    curve = ControlCurve(scales, values, torch.tensor([0.4, 0.8, 0.8, 1.0], dtype=torch.float64))
    assert curve.means.tolist() == [1, 3, 7, 2]
    x, y = np.repeat(scales, 2), values.flatten().numpy()
    assert curve.slope == pytest.approx(np.polyfit(scales, [1, 3, 7, 2], 1)[0])
    assert curve.slope == pytest.approx(((x - x.mean()) * y).sum() / ((x - x.mean()) ** 2).sum())  # of all images
    assert curve.rho == pytest.approx(1 - 6 * (0 + 1 + 1 + 4) / (4 * 15))
    assert curve.off_target is not None
    assert curve.off_target.tolist() == pytest.approx([0.5, 0, 0, -0.25])
    assert ControlCurve(scales, values).off_target is None
    assert ControlCurve(scales, values, torch.zeros(4)).off_target is None
    assert transfer_ratio(ControlCurve(scales, -2 * values), curve) == pytest.approx(-2)
    with pytest.raises(ConfigError, match="different scales"):
        transfer_ratio(curve, ControlCurve((0.0, 1.0), values[:2]))


def test_agreement_is_the_share_of_labels_found(base) -> None:
    wrong = lambda images: torch.eye(2)[torch.zeros(len(images), dtype=torch.int64)]  # noqa: E731
    args = (base, LowRankAdapter.of(base), Sampler("ddim", 1), NOISE[:5], LABELS[:5], (0, 1), "ink_mass")
    curve = control_curve(*args, classifier=wrong)
    assert curve.agreement is not None
    assert curve.agreement.tolist() == [0.6, 0.6]
    with pytest.raises(ConfigError, match="a classifier gives logits"):
        control_curve(*args, classifier=lambda images: torch.zeros(len(images)))


# --- mistakes ---


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        (dict(steps=0), ConfigError, "steps of a slider's training"),
        (dict(batch_size=2.5), ConfigError, "batch_size of a slider's training"),
        (dict(lr=math.nan), ConfigError, "lr of a slider's training"),
        (dict(loss_on="noise"), UnknownName, "unknown prediction 'noise'"),
        (dict(times=[]), ConfigError, "integers of 0 … 63"),
        (dict(times=[64]), ConfigError, "integers of 0 … 63"),
        (dict(times=[-1]), ConfigError, "integers of 0 … 63"),
        (dict(rank=0), ConfigError, "rank of an adapter"),
        (dict(layers="attention"), ConfigError, "matches no linear or convolution layer"),
    ],
)
def test_bad_training_arguments(base, changes, error, said) -> None:
    with pytest.raises(error, match=said):
        slider(base, **changes)


def test_bad_curves(base) -> None:
    def curve(labels: Tensor | None = LABELS, scales: Any = SCALES, attribute: Any = "ink_mass", **more: Any) -> Any:
        adapter = more.pop("adapter", LowRankAdapter.of(base))
        return control_curve(base, adapter, Sampler("ddim", 1), NOISE, labels, scales, attribute, **more)

    for scales in ((1.0,), (1.0, 1.0), (0.0, math.nan), ()):
        with pytest.raises(ConfigError, match="2 or more different, finite scales"):
            curve(scales=scales)
    with pytest.raises(ConfigError, match="needs labels, and scale 0"):
        curve(scales=(1, 2), classifier=side)
    with pytest.raises(ConfigError, match="needs labels, and scale 0"):
        curve(labels=None, classifier=side)
    with pytest.raises(UnknownName, match="did you mean 'ink_mass'"):
        curve(attribute="ink_mas")
    with pytest.raises(ConfigError, match="does not fit"):
        curve(adapter=LowRankAdapter.of(nn.Sequential(nn.Linear(2, 2))))


def test_images_of_another_size_or_class(base) -> None:
    images, labels = bars(8)
    with pytest.raises(ShapeMismatch, match="takes images"):
        train_slider(base, halves(F.pad(images, (1, 1, 1, 1)), labels, "ink_mass"))
    with pytest.raises(ConfigError, match="class 2 of the images is out of range: this model has classes 0 … 1"):
        train_slider(base, halves(images, labels + 1, "ink_mass"))  # 2 is the null class


def test_a_base_of_no_layers_cannot_be_adapted() -> None:
    images, _ = bars(8)
    with pytest.raises(ConfigError, match="matches no linear or convolution layer of GaussianNetwork; there are none"):
        train_slider(gaussian(side=4), halves(images, None, "ink_mass"))


def test_layers_that_the_model_does_not_run(base) -> None:
    idle = copy.deepcopy(base)
    idle.network.unused = nn.Linear(3, 3)  # type: ignore[assignment]
    with pytest.raises(DeadLoss, match="layers='unused' takes no part"):
        slider(idle, layers="unused")
    assert not hasattr(idle.network.unused, "parametrizations")


def test_weights_that_are_no_number(base) -> None:
    broken = copy.deepcopy(base)
    with torch.no_grad():
        broken.network.last.bias.fill_(math.nan)  # type: ignore[union-attr, operator]
    with pytest.raises(NonFiniteLoss, match="loss is nan at step 1 of 120"):
        slider(broken)
    assert list(broken.state_dict()) == list(base.state_dict())
    assert all(p.requires_grad for p in broken.parameters())
