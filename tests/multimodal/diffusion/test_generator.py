"""Generators of images: one image a seed and index, classes in turn, and BOOT students, which read noise."""

from __future__ import annotations

import pytest
import torch

diffusers = pytest.importorskip("diffusers", reason="needs the 'multimodal' extra")

from limbeck.engine import cost  # noqa: E402
from limbeck.errors import ConfigError, UserError  # noqa: E402
from limbeck.multimodal.diffusion.generator import BOOTGenerator, Noisy  # noqa: E402
from limbeck.multimodal.diffusion.models import denoiser_model  # noqa: E402
from limbeck.multimodal.diffusion.samplers import generators, noise  # noqa: E402
from limbeck.multimodal.diffusion.schedule import NoiseSchedule  # noqa: E402
from tests.multimodal.diffusion.methods.linked import boot_student  # noqa: E402
from tests.multimodal.diffusion.test_adapter import sampled  # noqa: E402
from tests.multimodal.diffusion.toys import ToyNetwork, normal  # noqa: E402

LABELS = torch.tensor([2, 0, 1])


# --- images ---


@pytest.mark.parametrize("sampler", [{}, dict(kind="consistency")])
def test_image_of_a_seed_is_the_same_whatever_the_batch(sampler):
    model = sampled(**sampler)
    whole = model.generate(count=7, seed=3, record=True)
    parts = model.generate([0, 1, 2, 0, 1, 2, 0], seed=3, batch_size=3, record=True)
    assert whole.images.shape == (7, 1, 4, 4)
    assert whole.x0s.shape == (4, 7, 1, 4, 4)
    torch.testing.assert_close(parts.images, whole.images, rtol=0, atol=1e-6)
    torch.testing.assert_close(parts.x0s, whole.x0s, rtol=0, atol=1e-6)
    assert (whole.calls, parts.calls) == (4, 4)
    few = model.generate(torch.tensor([0, 1]), seed=3)
    torch.testing.assert_close(few.images, whole.images[:2], rtol=0, atol=1e-6)
    assert few.x0s is None
    assert not torch.equal(model.generate(count=7, seed=4).images, whole.images)


def test_images_are_the_samplers_and_clamped():
    model = sampled()
    found = model.generate([2, 0, 1], seed=5).images
    want = model.sampler.sample(model, noise(3, (1, 4, 4), 5), LABELS).images
    assert torch.equal(found, want)
    assert found.abs().max() <= 1
    assert not found.requires_grad


def test_mode_and_dropout_are_left_as_they_were():
    model = sampled().train()
    first, second = model.generate(count=3).images, model.generate(count=3).images
    assert torch.equal(first, second)  # no dropout
    assert model.training
    assert model.network.modes[-1] is False


def test_unconditional_models_take_a_count():
    model = sampled(None)
    assert len(model.generate(count=2).images) == 2
    with pytest.raises(ConfigError, match="unconditional: generate takes count"):
        model.generate([0, 1])


def test_bad_requests_are_refused():
    model = sampled()
    for classes, count, said in (
        (None, None, "classes, one for each image, or count"),
        ([], None, "classes is empty"),
        ([0, 1], 3, "image for each of 2 classes; leave out count=3"),
        ([0, 3 + 1], None, r"class 4 is out of range: .* classes 0 … 2"),
        ([-1], None, "class -1 is out of range"),
        (None, 0, "1 image"),
    ):
        with pytest.raises(ConfigError, match=said):
            model.generate(classes, count=count)


# --- what a network costs ---


def test_of_a_noisy_example_whole_images_are_made():
    model = sampled(guidance=2.0)
    example = Noisy(normal(3, 1, 4, 4, dtype=torch.float32), torch.full((3,), 63), LABELS)
    assert isinstance(example, cost.Example)
    assert torch.equal(model(example), model.from_noise(example.z, LABELS, generators(3, 0)).images)
    one = example[1:2]
    assert (len(example), len(one), one.labels.tolist(), one.x) == (3, 1, [0], None)
    assert not example.is_cuda
    steps = {n: cost.count_flops(sampled(steps=n), example) for n in (1, 4)}
    assert steps[4] == 4 * steps[1] > 0
    assert cost.count_flops(model, example) == 2 * steps[4]
    z, t = example.z, example.t
    assert torch.equal(model(z, t, LABELS), super(type(model), model).forward(z, t, LABELS))


def test_noisy_keeps_its_clean_images_and_guidance_when_it_is_cut():
    z = normal(4, 1, 2, 2)
    cut = Noisy(z, torch.arange(4), torch.arange(4), z + 1, guidance=2.5)[1:3]
    assert torch.equal(cut.x, z[1:3] + 1)
    assert cut.t.tolist() == cut.labels.tolist() == [1, 2]
    assert cut.guidance == 2.5
    assert Noisy(z, torch.arange(4))[:1].labels is None


# --- BOOT students ---


@pytest.mark.parametrize(("prediction", "sign"), [("sample", 1), ("v_prediction", -1)])
def test_boot_student_makes_an_image_of_one_call_at_its_time(prediction, sign):
    model = boot_student(prediction=prediction, t_min=5, clip=True)
    start = noise(3, (1, 4, 4), 2)
    with torch.no_grad():
        want = sign * model(start, 5, LABELS)
        assert torch.equal(model.signal(start, 5, LABELS), want)
    found = model.generate([2, 0, 1], seed=2, record=True)
    assert torch.equal(found.images, want.clamp(-1, 1))
    assert torch.equal(found.x0s, found.images[None])
    assert (found.calls, found.times.tolist()) == (1, [5])
    assert torch.equal(model.train().generate([2, 0, 1], seed=2).images, found.images)


def test_boot_student_is_built_by_name_and_refuses_what_it_cannot_be():
    build = dict(schedule=NoiseSchedule.cosine(64), num_classes=3, image_size=4, sampler=dict(steps=1), boot_t_min=2)
    model = denoiser_model(ToyNetwork(num_classes=3), **build)
    assert isinstance(model, BOOTGenerator)
    assert model.t_min == 2
    with pytest.raises(ConfigError, match="ε of pure noise says nothing of y"):
        denoiser_model(ToyNetwork(num_classes=3), prediction="epsilon", **build)
    with torch.no_grad():
        model.network.last.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="sampling stopped at time 2: the network gives NaN"):
        model.generate(count=2)
