"""CLIPICL against float64 numpy: labelled rows alone, its factor raw or exponential."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck.engine.registry import METHODS
from limbeck.errors import DeadLoss, ShapeMismatch, UnknownName
from limbeck.multimodal.vlm.methods.clip_icl import icl_loss
from tests.multimodal.vlm.clip_toys import (
    array,
    clip_distiller,
    connected,
    embedded,
    inputs,
    np_ce,
    permuted,
    zero_shot,
)
from tests.multimodal.vlm.toys import mixed_batch

TARGETS = [2, -1, 0, -1, -1, 1]
ROWS = torch.tensor([0, 2, 5])


@pytest.mark.parametrize(("cross_scale", "factor"), [("exp", 1 / 0.07), ("raw", math.log(1 / 0.07))])
def test_matches_the_equation_over_labelled_rows(cross_scale, factor):
    link, batch = connected("CLIPICL", cross_scale=cross_scale), inputs(TARGETS)
    expected = np_ce(factor * embedded(link, batch)[ROWS] @ array(zero_shot().text), [2, 0, 1])
    found = link(batch)["icl"].item()
    assert found == pytest.approx(expected, rel=1e-5)
    # the student's tap may be of the labelled rows alone
    assert link(inputs(TARGETS, rows=ROWS))["icl"].item() == found
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    assert link(permuted(batch, order))["icl"].item() == pytest.approx(found, rel=1e-5)


def test_unlabelled_rows_change_nothing_and_get_no_gradient():
    link, batch = connected("CLIPICL"), inputs(TARGETS, requires_grad=True)
    other = inputs(TARGETS, seed=5)
    other.student[0][ROWS] = batch.student[0][ROWS].detach()
    loss = link(batch)["icl"]
    torch.testing.assert_close(link(other)["icl"], loss)
    loss.backward()
    reached = batch.student[0].grad.abs().sum(1) > 0
    assert reached.tolist() == [True, False, True, False, False, True]


def test_gradients_reach_student_projection_and_factor_alone():
    teacher = zero_shot()
    link, batch = connected("CLIPICL", teacher=teacher), inputs(TARGETS, requires_grad=True)
    teacher.text.requires_grad_()
    batch.teacher[0].requires_grad_()
    link(batch)["icl"].backward()
    assert batch.teacher[0].grad is teacher.text.grad is None
    moved = {name for name, p in link.named_parameters() if p.grad.abs().sum() > 0}
    assert moved == {"phi.weight", "phi.bias", "log_cross"}


def test_no_labels_give_zero_with_a_graph():
    link, batch = connected("CLIPICL"), inputs([-1, -1], requires_grad=True)
    loss = link(batch)["icl"]
    assert loss.item() == 0.0
    loss.backward()
    assert not batch.student[0].grad.any()
    assert link.log_cross.grad.item() == 0.0
    with pytest.raises(DeadLoss, match="exactly zero"):
        clip_distiller(dict(type="CLIPICL")).loss(mixed_batch((-1, -1)))
    clip_distiller(dict(type="CLIPICL", may_be_zero=True)).loss(mixed_batch((-1, -1)))


def test_a_run_never_shows_the_student_unlabelled_images_for_it():
    model = clip_distiller(dict(type="CLIPICL"))
    calls = model.members["student"].backbone.calls
    calls.clear()
    losses = model.loss(mixed_batch())
    assert calls == [3]
    losses["clipicl.loss_icl"].backward()
    assert model.members["student"].backbone.fc.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.frozen["teacher"].parameters())


def test_mistakes_are_refused():
    with pytest.raises(UnknownName, match="cross_scale"):
        METHODS.make(dict(type="CLIPICL", cross_scale="log"))
    link = connected("CLIPICL")
    with pytest.raises(ShapeMismatch, match="label 3 is not in 0 to 2"):
        link(inputs([0, 3, -1]))
    batch = inputs([0, 1])
    batch.targets = torch.full((2, 3), 1 / 3)
    with pytest.raises(ShapeMismatch, match="leave out the link that mixes them"):
        link(batch)
    with pytest.raises(ShapeMismatch, match="project the student's"):
        icl_loss(torch.zeros(2, 6), torch.zeros(3, 5), torch.tensor([0, 1]), 1.0)
