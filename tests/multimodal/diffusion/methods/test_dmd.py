"""Distribution matching: the gradient that the generator gets, ψ beside it, and who is updated when."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.engine.config import RecipeConfig
from limbeck.engine.distiller import Distiller
from limbeck.engine.registry import METHODS
from limbeck.engine.runner import JointOptimWrapper, build_optim_wrapper
from limbeck.errors import ConfigError
from tests.multimodal.diffusion.methods.linked import (
    alpha,
    asked,
    distiller,
    gradients,
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
FAKE, MATCH = "dmd.loss_fake", "dmd.loss_dm"
RECIPE = RecipeConfig(epochs=1, optimizer=dict(type="SGD", lr=0.1))


def linked(*, teacher: Any = None, student: Any = None, same: bool = False, **options: Any) -> Distiller:
    """With a ψ of random weights, unless it is to be the same as the teacher."""
    model = distiller(
        {**dict(type="DMD", first=0.0, start="own"), **options}, teacher or toy(seed=1), student or toy(seed=2)
    )
    if not same:
        model.methods()[0].fake.load_state_dict(toy(seed=3).state_dict())
    return model


def test_gradient_of_the_images_is_g_over_their_number():
    model, batch = linked(guidance=2.0), images(300)
    link, made = model.methods()[0], normal(300, 1, 4, 4, seed=4, dtype=torch.float32).requires_grad_(True)
    draw = torch.Generator().manual_seed(1)
    loss = link.matching(link_inputs(model, batch), made, batch.targets, draw)
    loss.backward()
    (question,) = asked(model, "teacher")
    z, t = wide(question.z), question.t.numpy()
    assert question.guidance == 2.0
    assert (t.min(), t.max()) == (1, 62)  # 2 … 98 % of 64 times, whole times kept
    noise = (z - alpha(t, T) * wide(made)) / sigma(t, T)
    assert (abs(noise.mean()), noise.std()) == pytest.approx((0, 1), abs=0.05)
    real = x0_of(model.frozen["teacher"], z, t, batch.targets, 2.0)
    fake = x0_of(link.fake, z, t, batch.targets)
    scale = np.abs(wide(made) - real).mean((1, 2, 3), keepdims=True)
    g = (fake - real) / scale
    np.testing.assert_allclose(wide(made.grad), g / g.size, rtol=1e-3, atol=1e-9)
    assert loss.item() == pytest.approx(0.5 * (g**2).mean(), rel=1e-4)
    assert 0.1 < np.abs(g).mean() < 10  # the normaliser makes it of order 1, image by image
    # A step against the gradient goes from ψ's guess to the teacher's.
    assert ((wide(made.grad) * (real - fake)).sum((1, 2, 3)) < 0).all()


def test_gradient_of_the_generator_is_that_of_following_g():
    model, batch = linked(), images(8)
    model.loss(batch)[MATCH].backward()
    found = gradients(model.deploy)
    question, given = asked(model, "teacher")[0], asked(model, "student")[0]
    assert set(given.t.tolist()) == {63}
    model.zero_grad()
    made = model.deploy.predict(given.z, given.t, given.labels).x0
    z, t = wide(question.z), question.t.numpy()
    real, fake = (x0_of(m, z, t, batch.targets) for m in (model.frozen["teacher"], model.methods()[0].fake))
    scale = np.abs(wide(made) - real).mean((1, 2, 3), keepdims=True)
    g = torch.from_numpy((fake - real) / scale).float()
    ((made * g).sum() / g.numel()).backward()
    for got, p in zip(found, model.deploy.parameters()):
        torch.testing.assert_close(got, p.grad, rtol=1e-3, atol=1e-6)


def test_a_fake_score_equal_to_the_teachers_moves_nothing():
    model = linked(same=True).train()  # dropout is on, but for scores
    terms = model.loss(images())
    assert terms[MATCH].item() == 0.0
    terms[MATCH].backward()
    assert not any(g.any() for g in gradients(model.deploy))
    assert terms[FAKE].item() > 0


def test_image_on_which_the_teacher_agrees_with_it_exactly_gives_no_nan():
    model = linked(teacher=gaussian(steps=64), student=gaussian((-0.4,), steps=64), same=True)
    link, batch = model.methods()[0], images(4, side=2, classes=None)
    for net in (model.frozen["teacher"].network, link.fake.network):
        net.std = 1e-9  # x0 is the mean, wherever it is asked
    made = torch.full((4, 1, 2, 2), 0.3).requires_grad_(True)
    loss = link.matching(link_inputs(model, batch), made, None, torch.Generator().manual_seed(0))
    loss.backward()
    assert loss.item() == 0.0
    assert not made.grad.any()


def test_fake_loss_is_a_v_loss_on_the_generators_images():
    model = linked(fake_weight=3.0).eval()  # without dropout
    link = model.methods()[0]
    heard: list[tuple] = []
    predict = link.fake.predict
    link.fake.predict = lambda z, t, labels: heard.append((z, t, labels)) or predict(z, t, labels)
    batch = images(200)
    found = model.loss(batch)[FAKE].item()
    given = asked(model, "student")[0]
    made = x0_of(model.deploy, wide(given.z), given.t.numpy(), given.labels)
    z, t, labels = heard[0]
    assert (int(t.min()), int(t.max())) == (0, 63)
    assert torch.equal(labels, batch.targets)
    noise = (wide(z) - alpha(t, T) * made) / sigma(t, T)
    assert (abs(noise.mean()), noise.std()) == pytest.approx((0, 1), abs=0.05)
    v = alpha(t, T) * noise - sigma(t, T) * made
    with torch.no_grad():
        want = 3.0 * ((wide(predict(z, t, labels).v) - v) ** 2).mean()
    assert found == pytest.approx(want, rel=1e-3)


def test_each_term_trains_its_own_network_alone():
    for term, mine in ((MATCH, "student"), (FAKE, "fake")):
        model = linked()
        theirs = opened(model, "teacher")
        model.loss(images())[term].backward()
        fake = model.methods()[0].fake
        for name, network in (("student", model.deploy), ("fake", fake)):
            moved = [p.grad is not None and bool(p.grad.any()) for p in network.parameters()]
            assert all(moved) if name == mine else not any(moved)
        assert all(p.grad is None for p in theirs)


def test_generator_has_its_turn_every_fifth_time_after_the_first_share():
    model = linked(first=0.25)
    turns = []
    for iteration in range(100):
        model.iteration, model.progress = iteration, iteration / 100
        terms = model.loss(requests())
        assert FAKE in terms
        if MATCH in terms:
            turns.append(iteration)
        elif iteration % 10 == 1:
            assert asked(model, "teacher") == []  # it is not asked in ψ's steps
        model.adapter.asked.clear()
    assert turns == list(range(25, 100, 5))
    assert int(model.methods()[0].done) == 100
    model = linked()
    assert sum(MATCH in model.loss(requests()) for _ in range(100)) == 20


def test_fake_has_its_own_optimiser_and_the_student_moves_in_its_turns_alone():
    model = linked(ratio=3, fake_lr=0.01)
    wrapper = build_optim_wrapper(model, model.links, RECIPE)
    assert isinstance(wrapper, JointOptimWrapper)
    own, main = wrapper["link0"].optimizer, wrapper["main"].optimizer
    link = model.methods()[0]
    assert isinstance(own, torch.optim.Adam)
    assert own.param_groups[0]["lr"] == 0.01
    assert {id(p) for p in own.param_groups[0]["params"]} == {id(p) for p in link.fake.parameters()}
    assert {id(p) for p in main.param_groups[0]["params"]} == {id(p) for p in model.deploy.parameters()}
    for iteration in range(7):
        model.iteration = iteration
        before = [[p.clone() for p in net.parameters()] for net in (model.deploy, link.fake)]
        wrapper.update_params(torch.stack(list(model.loss(images()).values())).sum())
        student, fake = (
            any(not torch.equal(a, b) for a, b in zip(old, net.parameters()))
            for old, net in zip(before, (model.deploy, link.fake))
        )
        assert (student, fake) == (iteration % 3 == 0, True)


def test_fake_is_kept_for_resume_and_not_with_the_student():
    model = linked()
    names = set(model.state_dict())
    assert {f"links.0.fake.{name}" for name in toy().state_dict()} < names
    assert "links.0.done" in names
    assert set(model.deploy.state_dict()) == set(toy().state_dict())


def test_fake_starts_as_the_teacher_and_its_seed_is_nobodys():
    model = linked(same=True)
    for mine, its in zip(model.methods()[0].fake.parameters(), model.frozen["teacher"].parameters()):
        assert torch.equal(mine, its)
        assert mine.requires_grad
        assert not its.requires_grad
    assert not any(p is q for p in model.methods()[0].fake.parameters() for q in model.frozen["teacher"].parameters())


def test_mean_of_gaussian_images_moves_to_the_teachers():
    """G gives one constant image, ψ is the exact denoiser of it but for its mean: all there is to learn is a number."""
    student = gaussian((-0.5,), steps=64)
    student.network.requires_grad_(True)
    model = linked(teacher=gaussian(steps=64), student=student, same=True, ratio=3, fake_lr=0.2)
    fake = model.methods()[0].fake
    recipe = RecipeConfig(epochs=1, optimizer=dict(type="Adam", lr=0.05))
    wrapper = build_optim_wrapper(model, model.links, recipe)
    gaps = []
    batch = requests(16, 1)
    batch.targets = None
    for iteration in range(66):
        model.iteration = iteration
        wrapper.update_params(torch.stack(list(model.loss(batch).values())).sum())
        if iteration % 3 == 0:
            gaps.append(abs(student.network.means.item() - 0.3))
    assert all(b < a for a, b in pairwise(gaps[2:14])), gaps
    assert gaps[0] > 0.75
    assert gaps[-1] < 0.15
    assert abs(fake.network.means.item() - student.network.means.item()) < 0.15


@pytest.mark.parametrize("options", [dict(ratio=0), dict(first=1.0), dict(fake_weight=0.0), dict(fake_lr=0.0)])
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(ConfigError, match="DMD has ratio of 1 or more, first in"):
        METHODS.make(dict(type="DMD", **options))
