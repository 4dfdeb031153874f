"""CLIPGD: its closed form against autograd and float64 numpy; labelled rows alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from limbeck.engine.registry import METHODS
from limbeck.errors import ShapeMismatch, UnknownName
from limbeck.multimodal.vlm.methods.clip_gd import contrastive_gradients, gd_loss
from tests.multimodal.vlm.clip_toys import (
    SCALE,
    array,
    clip_distiller,
    connected,
    embedded,
    inputs,
    np_gradients,
    permuted,
    zero_shot,
)
from tests.multimodal.vlm.toys import mixed_batch

TARGETS = [2, -1, 0, -1, -1, 1]
ROWS = torch.tensor([0, 2, 5])


def embeddings(rows: int, classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    p, k = (F.normalize(torch.randn(n, 5, dtype=torch.float64, generator=generator), dim=1) for n in (rows, classes))
    return p.requires_grad_(), k.requires_grad_(), torch.arange(rows) % classes


@pytest.mark.parametrize(("rows", "classes"), [(6, 3), (4, 4)])
@pytest.mark.parametrize(("gd_scale", "factor"), [("correct", 9.0), ("official", 1 / 9.0)])
def test_closed_form_is_autograds_and_numpys(rows, classes, gd_scale, factor):
    p, k, y = embeddings(rows, classes)
    expected = torch.autograd.grad(F.cross_entropy(factor * p @ k.T, y), (p, k))
    found = contrastive_gradients(p, k, y, 9.0, gd_scale)
    for ours, theirs, naive in zip(found, expected, np_gradients(array(p), array(k), y.tolist(), 1 / factor)):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(ours.detach().numpy(), naive, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("options", "s", "weight"), [(dict(), SCALE, 1.0), (dict(student_scale="learned"), 1 / 0.07, 1)]
)
@pytest.mark.parametrize("gd_scale", ["correct", "official"])
def test_matches_the_equation_over_labelled_rows(options, s, weight, gd_scale):
    link, batch = connected("CLIPGD", gd_scale=gd_scale, **options), inputs(TARGETS)
    keys = array(zero_shot().text).T
    power = -1 if gd_scale == "correct" else 1
    mine, _ = np_gradients(embedded(link, batch)[ROWS], keys, [2, 0, 1], s**power)
    theirs, _ = np_gradients(array(batch.teacher[0])[ROWS], keys, [2, 0, 1], SCALE**power)
    found = link(batch)["gd"].item()
    assert found == pytest.approx(((mine - theirs) ** 2).mean(), rel=1e-4)
    assert link(inputs(TARGETS, rows=ROWS))["gd"].item() == found
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    assert link(permuted(batch, order))["gd"].item() == pytest.approx(found, rel=1e-5)
    assert link.weight == weight


def test_zero_for_the_teachers_own_embeddings():
    link, batch = connected("CLIPGD", width=5), inputs(TARGETS, width=5)
    batch.student = [0.1 * batch.teacher[0]]
    assert link(batch)["gd"].item() == pytest.approx(0.0, abs=1e-12)


def test_unlabelled_rows_change_nothing_and_get_no_gradient():
    link, batch = connected("CLIPGD"), inputs(TARGETS, requires_grad=True)
    other = inputs(TARGETS, seed=5)
    for side in ("student", "teacher"):
        getattr(other, side)[0][ROWS] = getattr(batch, side)[0][ROWS].detach()
    loss = link(batch)["gd"]
    torch.testing.assert_close(link(other)["gd"], loss)
    loss.backward()
    reached = batch.student[0].grad.abs().sum(1) > 0
    assert reached.tolist() == [True, False, True, False, False, True]


@pytest.mark.parametrize("student_scale", ["teacher", "learned"])
def test_gradients_reach_student_projection_and_learned_scale_alone(student_scale):
    teacher = zero_shot()
    link = connected("CLIPGD", teacher=teacher, student_scale=student_scale)
    batch = inputs(TARGETS, requires_grad=True)
    for x in (teacher.text, teacher.logit_scale, batch.teacher[0]):
        x.requires_grad_()
    link(batch)["gd"].backward()
    assert batch.teacher[0].grad is teacher.text.grad is teacher.logit_scale.grad is None
    moved = {name for name, p in link.named_parameters() if p.grad.abs().sum() > 0}
    assert moved == {"phi.weight", "phi.bias"} | ({"log_scale"} if student_scale == "learned" else set())


def test_no_labels_give_zero_with_a_graph():
    link, batch = connected("CLIPGD"), inputs([-1, -1], requires_grad=True)
    loss = link(batch)["gd"]
    assert loss.item() == 0.0
    loss.backward()
    assert not batch.student[0].grad.any()


def test_a_run_never_shows_the_student_unlabelled_images_for_it():
    model = clip_distiller(dict(type="CLIPGD"))
    calls = model.members["student"].backbone.calls
    calls.clear()
    losses = model.loss(mixed_batch())
    assert calls == [3]
    losses["clipgd.loss_gd"].backward()
    assert model.members["student"].backbone.fc.weight.grad.abs().sum() > 0


def test_mistakes_are_refused():
    with pytest.raises(UnknownName, match="gd_scale"):
        METHODS.make(dict(type="CLIPGD", gd_scale="right"))
    with pytest.raises(ShapeMismatch):
        gd_loss(torch.zeros(2, 5), torch.zeros(2, 4))
