"""The angle between the labels' and the teacher's gradients, against gradients made one by one."""

from __future__ import annotations

import pytest
import torch

from limbeck.errors import ConfigError
from limbeck.multimodal.vlm.conflict import GradientConflictHook, gradient_conflict
from tests.multimodal.vlm.toys import distiller, mixed_batch


@pytest.mark.parametrize("kd_head", [None, "linear"])
def test_cosines_equal_gradients_made_one_by_one(kd_head):
    model, batch = distiller(kd_head), mixed_batch()
    found = gradient_conflict(model, batch)
    student, flat = model.members["student"], {}
    for side in ("student.loss_ce", "dho.loss_"):
        student.zero_grad()
        sum(v for k, v in model.loss(batch).items() if k.startswith(side)).backward()
        for part in ("backbone", "ce_head"):
            grads = [p.grad for p in getattr(student, part).parameters()]
            flat[side, part] = None if grads[0] is None else torch.cat([g.flatten().double() for g in grads])
    for name, part in (("backbone", "backbone"), ("head", "ce_head")):
        a, b = flat["student.loss_ce", part], flat["dho.loss_", part]
        if b is None:
            assert name not in found  # the head of DHO: its losses share no parameter
        else:
            assert found[name] == pytest.approx(float(torch.cosine_similarity(a, b, dim=0)), rel=1e-4)
    assert set(found) == ({"backbone", "head"} if kd_head is None else {"backbone"})


def test_the_model_is_as_before():
    model, batch = distiller(norm=True), mixed_batch()
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert gradient_conflict(model, batch)
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    assert model.teacher_forwards == 0
    assert all(p.grad is None for p in model.parameters())


def test_without_links_or_task_loss_there_is_no_angle():
    assert gradient_conflict(distiller(links=False), mixed_batch()) == {}
    assert gradient_conflict(distiller(task_weight=0.0), mixed_batch()) == {}
    with pytest.raises(ConfigError, match="at least 1; got 0"):
        GradientConflictHook(every=0)
