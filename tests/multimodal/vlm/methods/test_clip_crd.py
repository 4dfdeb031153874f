"""CLIPCRD against float64 numpy, its scales, and TinyCLIP's affinity mimicking."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName
from limbeck.multimodal.vlm.methods.clip_crd import crd_loss
from tests.multimodal.vlm.clip_toys import (
    SCALE,
    array,
    clip_distiller,
    connected,
    embedded,
    inputs,
    np_kl,
    permuted,
    zero_shot,
)
from tests.multimodal.vlm.toys import mixed_batch

TARGETS = [2, -1, 0, -1, -1, 1]


@pytest.mark.parametrize(
    ("options", "s", "s_t"),
    [
        (dict(), 1 / 0.07, SCALE),
        (dict(student_scale="teacher"), SCALE, SCALE),
        (dict(student_scale="teacher", teacher_scale=50.0), 50.0, 50.0),
    ],
)
def test_matches_the_equation_over_all_rows_whatever_the_labels(options, s, s_t):
    link, batch = connected("CLIPCRD", **options), inputs(TARGETS)
    text = array(zero_shot().text)
    expected = np_kl(s * embedded(link, batch) @ text, s_t * array(batch.teacher[0]) @ text)
    found = link(batch)["crd"].item()
    assert found == pytest.approx(expected, rel=1e-5)
    assert link(inputs([-1] * 6))["crd"].item() == found
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    assert link(permuted(batch, order))["crd"].item() == pytest.approx(found, rel=1e-5)


def test_zero_for_the_teachers_own_embeddings():
    link, batch = connected("CLIPCRD", width=5, student_scale="teacher"), inputs(TARGETS, width=5)
    batch.student = [0.1 * batch.teacher[0]]
    assert link(batch)["crd"].item() == pytest.approx(0.0, abs=1e-6)


def test_affinity_mimicking_is_larger_by_the_teachers_entropy_and_has_its_gradient():
    student, teacher = 3 * torch.randn(2, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    student.requires_grad_()
    target = teacher.softmax(1)
    soft = -(target * student.log_softmax(1)).sum(1).mean()
    entropy = -(target * target.log()).sum(1).mean()
    torch.testing.assert_close(soft - entropy, crd_loss(student, teacher))
    grads = [torch.autograd.grad(loss, student)[0] for loss in (soft, crd_loss(student, teacher))]
    torch.testing.assert_close(*grads)


def test_gradients_reach_student_projection_and_scale_alone():
    teacher = zero_shot()
    link, batch = connected("CLIPCRD", teacher=teacher), inputs(TARGETS, requires_grad=True)
    teacher.text.requires_grad_()
    teacher.logit_scale.requires_grad_()
    batch.teacher[0].requires_grad_()
    link(batch)["crd"].backward()
    assert batch.teacher[0].grad is teacher.text.grad is teacher.logit_scale.grad is None
    assert all(row.abs().sum() > 0 for row in batch.student[0].grad)
    moved = {name for name, p in link.named_parameters() if p.grad.abs().sum() > 0}
    assert moved == {"phi.weight", "phi.bias", "log_scale"}
    assert set(connected("CLIPCRD", student_scale="teacher").state_dict()) == {"phi.weight", "phi.bias"}


@pytest.mark.parametrize(("start", "kept"), [(9.0, math.log(100)), (-2.0, 0.0), (3.0, 3.0)])
def test_the_learned_scale_stays_between_1_and_100_and_can_leave_a_bound(start, kept):
    link, batch = connected("CLIPCRD"), inputs(TARGETS)
    with torch.no_grad():
        link.log_scale.fill_(start)
    loss = link(batch)["crd"]
    assert link.log_scale.item() == pytest.approx(kept)
    loss.backward()
    assert link.log_scale.grad.abs() > 0


def test_autocast_changes_nothing():
    link, batch = connected("CLIPCRD"), inputs(TARGETS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = link(batch)["crd"]
    torch.testing.assert_close(found, link(batch)["crd"])


def test_a_step_of_a_run_trains_backbone_and_link_alone():
    model = clip_distiller(dict(type="CLIPCRD"))
    losses = model.loss(mixed_batch())
    losses["clipcrd.loss_crd"].backward()
    assert model.members["student"].ce_head.weight.grad is None
    assert model.members["student"].backbone.fc.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.frozen["teacher"].parameters())
    assert METHODS.make({"type": "CLIPCRD"}).weight == 1.0


def test_teachers_without_text_or_scale_are_refused():
    bare = zero_shot()
    del bare.text
    with pytest.raises(ConfigError, match="reads 'text' of teacher 'teacher', which ToyZeroShot lacks"):
        connected("CLIPCRD", teacher=bare)
    with pytest.raises(ConfigError, match="do not fit its features of 5 numbers"):
        connected("CLIPCRD", teacher=zero_shot(width=4))
    with pytest.raises(ConfigError, match="logit_scale of teacher 'teacher' is not positive"):
        connected("CLIPCRD", teacher=zero_shot(scale=0.0))
    connected("CLIPCRD", teacher=zero_shot(scale=0.0), teacher_scale=50.0)
    with pytest.raises(ConfigError, match="teacher_scale > 0"):
        METHODS.make(dict(type="CLIPCRD", teacher_scale=0.0))
    with pytest.raises(UnknownName, match="student_scale"):
        METHODS.make(dict(type="CLIPCRD", student_scale="learnt"))
    with pytest.raises(ShapeMismatch):
        crd_loss(torch.zeros(2, 3), torch.zeros(2, 4))


def test_embeddings_are_read_where_they_are_now():
    teacher = zero_shot()
    link, batch = connected("CLIPCRD", teacher=teacher), inputs(TARGETS)
    before = link(batch)["crd"]
    teacher.text.copy_(F.normalize(teacher.text.flip(0), dim=0))
    assert link(batch)["crd"] != before
