"""The diffusion adapter: its loss in closed form, dropped labels, pixels, requests for samples, and mistakes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

diffusers = pytest.importorskip("diffusers", reason="needs the 'multimodal' extra")

from limbeck.engine.adapter import Batch  # noqa: E402
from limbeck.engine.registry import ADAPTERS  # noqa: E402
from limbeck.errors import ConfigError  # noqa: E402
from limbeck.multimodal.diffusion.adapter import DiffusionAdapter, denoiser, generator  # noqa: E402
from limbeck.multimodal.diffusion.data.sample_requests import SampleRequests  # noqa: E402
from limbeck.multimodal.diffusion.denoiser import Denoiser  # noqa: E402
from limbeck.multimodal.diffusion.generator import ImageGenerator, Noisy  # noqa: E402
from limbeck.multimodal.diffusion.models import denoiser_model  # noqa: E402
from limbeck.multimodal.diffusion.samplers import noise  # noqa: E402
from limbeck.multimodal.diffusion.schedule import PREDICTIONS, NoiseSchedule  # noqa: E402
from tests.multimodal.diffusion.methods.linked import Blind, alpha, images, sigma, wide  # noqa: E402
from tests.multimodal.diffusion.toys import ToyNetwork, gaussian, normal, toy  # noqa: E402

T = 64
CLASSES = ["a", "b", "c"]


def sampled(num_classes: int | None = 3, seed: int = 0, **sampler: Any) -> ImageGenerator:
    """Random weights and a sampler of four steps."""
    made = denoiser_model(
        ToyNetwork(num_classes=num_classes, seed=seed),
        NoiseSchedule.cosine(T),
        num_classes=num_classes,
        image_size=4,
        sampler={"steps": 4, **sampler},
    )
    return made.eval()


def requested(ids: list[int], seed: int = 0, split: str = "test", count: int = 30) -> Batch:
    """Requests with these ids, as a loader and the adapter bring them."""
    data = SampleRequests(CLASSES, count, split, seed).__getitems__(ids)
    ready = DiffusionAdapter().preprocessor(toy())(data)
    return DiffusionAdapter().batch(ready["inputs"], ready["data_samples"])


# --- the denoising loss ---


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_denoising_loss_is_snr_plus_1_times_the_error_of_x0(prediction):
    model, batch = toy(prediction=prediction), images(32)
    t = torch.randint(T - 4, (32,), generator=torch.Generator().manual_seed(1))
    z = model.schedule.add_noise(batch.inputs, normal(32, 1, 4, 4, seed=2, dtype=torch.float32), t)
    question = Noisy(z, t, batch.targets, batch.inputs)
    found = DiffusionAdapter().forward(model, question, batch, with_loss=True)
    a, b, x0 = alpha(t, T), sigma(t, T), wide(found.offers["x0"]())
    snr = (a / b) ** 2
    want = ((snr + 1) * (x0 - wide(batch.inputs)) ** 2).mean()
    assert list(found.losses) == ["loss_denoising"]
    assert found.losses["loss_denoising"].item() == pytest.approx(want, rel=1e-4)
    # And that of v, from the noise.
    v = a * (wide(z) - a * wide(batch.inputs)) / b - b * wide(batch.inputs)
    assert want == pytest.approx(((wide(found.offers["v"]()) - v) ** 2).mean(), rel=1e-4)


def test_images_are_noised_at_uniform_times_by_torchs_own_generator():
    model, batch = toy(), images(2000)
    torch.manual_seed(4)
    found = DiffusionAdapter().noised(model, batch.inputs, batch.targets)
    torch.manual_seed(4)
    again = DiffusionAdapter().noised(model, batch.inputs, batch.targets)
    assert torch.equal(found.z, again.z)
    counts = np.bincount(found.t.numpy(), minlength=T)
    assert counts.min() > 8
    assert counts.max() < 62
    drawn = (wide(found.z) - alpha(found.t, T) * wide(batch.inputs)) / sigma(found.t, T)
    assert (abs(drawn.mean()), drawn.std()) == pytest.approx((0, 1), abs=0.02)
    torch.manual_seed(4)
    loss = DiffusionAdapter().forward(model, batch.inputs, batch, with_loss=True).losses["loss_denoising"]
    same = DiffusionAdapter().forward(model, found, batch, with_loss=True).losses["loss_denoising"]
    assert torch.equal(loss, same)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_share_of_the_labels_is_dropped(share):
    batch = images(4000)
    torch.manual_seed(0)
    found = DiffusionAdapter(share).noised(toy(), batch.inputs, batch.targets).labels
    dropped = found == 3
    assert dropped.float().mean().item() == pytest.approx(share, abs=4 * (share * (1 - share) / 4000) ** 0.5)
    assert torch.equal(found[~dropped], batch.targets[~dropped])
    assert ADAPTERS.make(dict(type="DiffusionAdapter")).drop_labels == 0.1


def test_labels_are_kept_where_there_is_no_null_class_and_left_out_where_there_are_none():
    batch, adapter = images(400), DiffusionAdapter(0.5)
    sure = Denoiser(ToyNetwork(num_classes=3), NoiseSchedule.cosine(T), "epsilon", 3, 4, 1, null_class=False)
    assert torch.equal(adapter.noised(sure, batch.inputs, batch.targets).labels, batch.targets)
    assert adapter.noised(toy(None), batch.inputs, batch.targets).labels is None
    assert adapter.noised(toy(), batch.inputs, None).labels is None  # the null class for all
    loss = adapter.forward(toy(), batch.inputs, Batch(batch.inputs), with_loss=True).losses["loss_denoising"]
    assert torch.isfinite(loss)


def test_exact_denoiser_has_the_least_loss():
    batch = images(3000, side=2, classes=None)
    batch.inputs = 0.3 + 0.5 * batch.inputs

    def loss(mean: float, std: float) -> float:
        torch.manual_seed(1)
        found = DiffusionAdapter().forward(gaussian((mean,), std), batch.inputs, batch, with_loss=True)
        return found.losses["loss_denoising"].item()

    best = loss(0.3, 0.5)
    assert all(best < other for other in (loss(0.2, 0.5), loss(0.4, 0.5), loss(0.3, 0.4), loss(0.3, 0.6)))


# --- what is offered ---


def test_taps_are_those_of_the_denoiser_and_lazy():
    model, batch = toy(), images(5)
    t = torch.tensor([3, 9, 20, 40, 63])
    question = Noisy(batch.inputs, t, batch.targets, guidance=2.0)
    found = DiffusionAdapter().forward(model, question, batch, with_loss=True)
    assert found.losses == {}  # what it was made of is not known
    want = model.predict(batch.inputs, t, batch.targets, 2.0)
    for name in ("x0", "epsilon", "v", "output"):
        assert callable(found.offers[name])
        assert torch.equal(found.offers[name](), getattr(want, name))


def test_example_is_noise_at_the_last_time():
    for model in (toy(), toy(None)):
        batch = DiffusionAdapter().example(model)
        assert batch.inputs.z.shape == (2, 1, 4, 4)
        assert batch.inputs.t.tolist() == [63, 63]
        assert (batch.inputs.labels is None) == (model.num_classes is None)
        assert set(DiffusionAdapter().forward(model, batch.inputs, batch, with_loss=False).offers) == set(
            DiffusionAdapter.offers
        )


# --- pixels ---


def test_pixels_become_minus_1_to_1_at_the_denoisers_size():
    process = DiffusionAdapter().preprocessor(toy())
    grey = torch.arange(256, dtype=torch.uint8).repeat_interleave(16).reshape(256, 1, 4, 4)
    found = process(dict(inputs=grey, data_samples=dict(labels=torch.zeros(256))))["inputs"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[:, 0, 0, 0], torch.arange(256) / 127.5 - 1, rtol=0, atol=1e-6)
    large = grey[:, :, :1, :1].expand(256, 1, 9, 12).contiguous()
    resized = process(dict(inputs=large, data_samples={}))["inputs"]
    torch.testing.assert_close(resized, found, rtol=0, atol=1e-5)
    checks = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 255
    smooth = process(dict(inputs=checks.to(torch.uint8)[None, None], data_samples={}))["inputs"]
    assert smooth.shape == (1, 1, 4, 4)
    assert smooth.abs().max() < 0.3  # antialiased: a chessboard is grey
    with pytest.raises(ConfigError, match="images of 3 channels"):
        process(dict(inputs=torch.zeros(1, 3, 4, 4, dtype=torch.uint8), data_samples={}))


def test_requests_pass_as_they_are():
    batch = requested([4, 1, 2])
    assert batch.inputs.shape == (3, 0)
    assert batch.targets.tolist() == [1, 1, 2]
    assert batch.ids.tolist() == [4, 1, 2]
    assert batch.extra["splits"].tolist() == [2, 2, 2]


# --- images on request ---


@pytest.mark.parametrize("sampler", [{}, dict(kind="consistency", steps=2), dict(eta=1.0), dict(guidance=2.0)])
def test_image_of_a_request_is_the_same_whatever_else_is_asked(sampler):
    model, adapter = sampled(**sampler), DiffusionAdapter()
    ids = [7, 0, 12, 3, 29]
    (whole,) = adapter.predict(model, None, requested(ids))
    assert whole["image"].shape == (5, 1, 4, 4)
    assert whole["ids"].tolist() == ids
    assert whole["label"].tolist() == [k % 3 for k in ids]
    assert whole["split"].tolist() == [2] * 5
    assert whole["calls"].tolist() == [{"kind": 2, "guidance": 8}.get(next(iter(sampler), ""), 4)] * 5
    for row, k in enumerate(ids):
        (one,) = adapter.predict(model, None, requested([k]))
        torch.testing.assert_close(one["image"][0], whole["image"][row], rtol=0, atol=1e-6)
    (reversed_,) = adapter.predict(model, None, requested(ids[::-1]))
    torch.testing.assert_close(reversed_["image"].flip(0), whole["image"], rtol=0, atol=1e-6)


def test_images_are_the_samplers_from_the_noise_of_their_seed_and_split():
    model, adapter = sampled(), DiffusionAdapter()
    for seed, split, number in ((0, "test", 2), (0, "val", 1), (4, "train", 12)):
        (found,) = adapter.predict(model, None, requested([0, 1, 2, 3], seed, split))
        start = noise(4, (1, 4, 4), number)
        want = model.sampler.sample(model, start, torch.tensor([0, 1, 2, 0])).images
        torch.testing.assert_close(found["image"], want, rtol=0, atol=1e-6)
    (free,) = adapter.predict(sampled(None), None, requested([0, 1]))
    assert free["label"].tolist() == [0, 1]


def test_two_models_start_from_the_same_noise():
    adapter = DiffusionAdapter()
    (one,), (same,), (other,) = (adapter.predict(sampled(seed=seed), None, requested([0, 5])) for seed in (0, 0, 1))
    assert torch.equal(one["image"], same["image"])
    assert not torch.equal(one["image"], other["image"])


# --- mistakes ---


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ConfigError, match=r"drop_labels is a share in \[0, 1\)"):
        DiffusionAdapter(share)


def test_a_batch_of_images_asks_for_none():
    batch = images(3)
    with pytest.raises(ConfigError, match=r"tested on SampleRequests: set data\.val and data\.test to that type"):
        DiffusionAdapter().predict(sampled(), batch.inputs, batch)


def test_a_loss_without_images_is_refused():
    batch = requested([0, 1])
    with pytest.raises(ConfigError, match=r"needs images, and this training data has none; .* task_weight=0"):
        DiffusionAdapter().forward(toy(), batch.inputs, batch, with_loss=True)


def test_models_of_other_kinds_are_refused():
    with pytest.raises(ConfigError, match="Linear is no diffusion model; build it with type='Denoiser'"):
        denoiser(nn.Linear(1, 1))
    with pytest.raises(ConfigError, match="Denoiser has no sampler"):
        generator(toy())
    assert denoiser(sampled()) is not None
    with pytest.raises(ConfigError, match="Denoiser has no sampler"):
        DiffusionAdapter().predict(toy(), None, requested([0]))


def test_members_of_other_images_or_schedules_are_refused():
    adapter, batch = DiffusionAdapter(), images(2)
    assert adapter.member_inputs(batch, toy(), toy(seed=1)) is batch.inputs
    blind = Batch(Blind(2))
    assert adapter.member_inputs(blind, toy(), toy(steps=128)) is blind.inputs
    with pytest.raises(ConfigError, match=r"images of one shape; got \(1, 4, 4\) and \(1, 2, 2\)"):
        adapter.member_inputs(batch, toy(), gaussian())
    with pytest.raises(ConfigError, match="one noise schedule; got two of 64 and 128 times"):
        adapter.member_inputs(adapter.example(toy()), toy(), toy(steps=128))


def test_another_number_of_classes_than_the_datas_is_refused():
    adapter = DiffusionAdapter()
    adapter.check_data(toy(), SimpleNamespace(name="letters", classes=CLASSES))
    adapter.check_data(toy(None), SimpleNamespace(name="letters", classes=["a"]))
    with pytest.raises(ConfigError, match=r"Denoiser has 3 classes and data set letters has 2; .*num_classes=2"):
        adapter.check_data(toy(), SimpleNamespace(name="letters", classes=["a", "b"]))
