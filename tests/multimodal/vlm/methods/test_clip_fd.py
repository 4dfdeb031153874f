"""CLIPFD against float64 numpy, and what its gradients and its teacher's class embeddings are to it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.multimodal.vlm.methods.clip_fd import fd_loss
from tests.multimodal.vlm.clip_toys import (
    array,
    clip_distiller,
    connected,
    embedded,
    inputs,
    np_fd,
    permuted,
)
from tests.multimodal.vlm.toys import mixed_batch

TARGETS = [2, -1, 0, -1, -1, 1]


def test_matches_the_equation_over_all_rows_whatever_the_labels():
    link, batch = connected("CLIPFD"), inputs(TARGETS)
    found = link(batch)["fd"].item()
    assert found == pytest.approx(np_fd(embedded(link, batch), array(batch.teacher[0])), rel=1e-5)
    assert link(inputs([-1] * 6))["fd"].item() == found
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    assert link(permuted(batch, order))["fd"].item() == pytest.approx(found, rel=1e-6)


def test_is_twice_the_mean_cosine_distance_over_the_width_and_zero_at_equality():
    student, teacher = torch.randn(2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cosine = nn.functional.cosine_similarity(student, teacher)
    torch.testing.assert_close(fd_loss(student, teacher), 2 / 5 * (1 - cosine).mean())
    torch.testing.assert_close(fd_loss(3 * student, teacher), fd_loss(student, teacher))
    assert fd_loss(teacher, teacher).item() == 0.0


def test_a_student_of_the_teachers_width_has_no_projection_unless_asked():
    link, batch = connected("CLIPFD", width=5), inputs(TARGETS, width=5)
    assert isinstance(link.phi, nn.Identity)
    batch.student = [2.0 * batch.teacher[0]]
    assert link(batch)["fd"].item() == pytest.approx(0.0, abs=1e-12)
    assert isinstance(connected("CLIPFD", width=5, project=True).phi, nn.Linear)


def test_gradients_reach_student_and_projection_and_never_the_teacher():
    link, batch = connected("CLIPFD"), inputs(TARGETS, requires_grad=True)
    batch.teacher[0].requires_grad_()
    link(batch)["fd"].backward()
    assert batch.teacher[0].grad is None
    assert all(row.abs().sum() > 0 for row in batch.student[0].grad)
    assert {name for name, p in link.named_parameters() if p.grad.abs().sum() > 0} == {"phi.weight", "phi.bias"}


def test_autocast_changes_nothing():
    link, batch = connected("CLIPFD"), inputs(TARGETS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = link(batch)["fd"]
    torch.testing.assert_close(found, link(batch)["fd"])


def test_a_step_of_a_run_weighs_it_by_2000():
    model = clip_distiller(dict(type="CLIPFD"))
    losses = model.loss(mixed_batch())
    one = clip_distiller(dict(type="CLIPFD", weight=1.0)).loss(mixed_batch())
    torch.testing.assert_close(losses["clipfd.loss_fd"], 2000.0 * one["clipfd.loss_fd"])
    assert METHODS.make({"type": "CLIPFD"}).taps == [("features", "features")]
    losses["clipfd.loss_fd"].backward()
    assert model.members["student"].ce_head.weight.grad is None
    assert model.members["student"].backbone.fc.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.frozen["teacher"].parameters())


def test_links_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="LinearClassifier offers no 'features'"):
        clip_distiller(dict(type="CLIPFD"), teacher="LinearClassifier")
    with pytest.raises(ConfigError, match="one pair of features"):
        METHODS.make({"type": "CLIPFD", "taps": [("features", "features")] * 2}).connect([(2, 5)] * 2, [(2, 6)] * 2)
    with pytest.raises(ShapeMismatch, match="one pooled feature a side"):
        METHODS.make({"type": "CLIPFD"}).connect([(2, 5)], [(2, 6, 4, 4)])
    with pytest.raises(ShapeMismatch, match="project the student's"):
        fd_loss(torch.zeros(2, 6), torch.zeros(2, 5))
