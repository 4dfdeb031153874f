"""Regression: the pairs are the teacher's DDIM samples, made once, and the student follows them in one step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from limbeck.engine.distiller import Distiller
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError
from limbeck.multimodal.diffusion.samplers import Sampler, noise
from tests.multimodal.diffusion.methods.linked import asked, distiller, images, opened, requests
from tests.multimodal.diffusion.toys import toy

pytest.importorskip("diffusers")
TERM = "regression.loss_samples"


def linked(*, teacher: Any = None, student: Any = None, **options: Any) -> Distiller:
    link = {**dict(type="Regression", pairs=70, teacher_steps=4, start="own"), **options}
    return distiller(link, teacher or toy(seed=1), student or toy(seed=2))


@pytest.mark.parametrize(("guidance", "clip"), [(1.0, True), (2.5, True), (1.0, False)])
def test_pairs_are_the_teachers_ddim_samples(guidance, clip):
    model = linked(guidance=guidance, teacher=toy(seed=1, clip=clip), student=toy(seed=2, clip=not clip))
    model.loss(requests())
    link, teacher = model.methods()[0], toy(seed=1, clip=clip)
    labels = torch.arange(70) % 3
    want = Sampler("ddim", 4, guidance).sample(teacher, link.noises, labels).images
    torch.testing.assert_close(link.samples, want, rtol=0, atol=2e-5)
    assert torch.equal(link.classes, labels)
    assert torch.equal(link.noises, noise(70, (1, 4, 4), 0, first=1 << 24))


def test_loss_is_the_squared_gap_of_one_step_to_the_samples():
    model, batch = linked(), requests(40)
    found = model.loss(batch)[TERM]
    link, (question,) = model.methods()[0], asked(model, "student")
    rows = [(link.noises == z).flatten(1).all(1).nonzero().item() for z in question.z]
    assert len(set(rows)) > 20
    assert set(question.t.tolist()) == {63}
    assert torch.equal(question.labels, link.classes[rows])
    with torch.no_grad():
        x0 = model.deploy.predict(question.z, 63, question.labels).x0.double()
    assert found.item() == pytest.approx(((x0 - link.samples[rows].double()) ** 2).mean().item(), rel=1e-5)


def test_samples_are_made_once_and_again_by_no_resumed_run():
    model = linked()
    model.loss(requests())
    assert [len(q) for q in asked(model, "teacher")] == [64] * 4 + [6] * 4
    assert model.teacher_forwards == 70 * 4
    model.adapter.asked.clear()
    model.iteration = 1
    second = model.loss(requests())[TERM]
    assert asked(model, "teacher") == []
    again = linked()
    again.load_state_dict(model.state_dict())
    again.iteration = 1
    assert torch.equal(again.loss(requests())[TERM], second)
    assert asked(again, "teacher") == []
    assert set(model.deploy.state_dict()) == set(toy().state_dict())


def test_pairs_depend_on_their_seed_alone():
    def samples(**options: Any) -> torch.Tensor:
        torch.manual_seed(len(options))
        model = linked(**options)
        before = torch.get_rng_state()
        model.loss(requests())
        assert torch.equal(before, torch.get_rng_state())
        return model.methods()[0].samples

    assert torch.equal(samples(), samples(start="teacher"))
    assert not torch.equal(samples(), samples(seed=1))
    assert torch.equal(samples()[:20], samples(pairs=20))


def test_gradient_reaches_the_student_alone_and_no_image_is_read():
    model = linked()
    theirs = opened(model, "teacher")
    batch = images()
    batch.inputs = torch.full_like(batch.inputs, float("nan"))
    model.loss(batch)[TERM].backward()
    assert all(p.grad is None for p in theirs)
    assert all(p.grad is not None and p.grad.any() for p in model.deploy.parameters())
    assert not model.methods()[0].samples.requires_grad


def test_unconditional_members():
    model = linked(teacher=toy(None, seed=1), student=toy(None, seed=2))
    assert model.loss(requests())[TERM].item() > 0
    assert asked(model, "student")[0].labels is None


def test_options_that_mean_nothing_are_refused():
    with pytest.raises(ConfigError, match="Regression needs pairs of 1 or more; got 0"):
        METHODS.make(dict(type="Regression", pairs=0))
    with pytest.raises(ConfigError, match="7 sampling steps do not divide the schedule's 64"):
        linked(teacher_steps=7)
