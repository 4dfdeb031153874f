"""FromTeacher: the teacher's weights to start with, and nothing else."""

from __future__ import annotations

import torch

from limbeck.engine.weights import hash_state
from tests.multimodal.diffusion.methods.linked import asked, distiller, images
from tests.multimodal.diffusion.toys import toy


def test_student_starts_as_the_teacher_and_trains_plainly():
    teacher = toy(seed=1)
    model = distiller(dict(type="FromTeacher"), teacher, toy(seed=2), task_weight=1.0)
    assert model.initial_hash == hash_state(teacher.state_dict())
    torch.manual_seed(3)
    terms = model.loss(images())
    assert list(terms) == ["student.loss_denoising"]
    plain = distiller(dict(type="FromTeacher", weight=0.0), toy(seed=1), toy(seed=1), task_weight=1.0)
    torch.manual_seed(3)
    assert torch.equal(plain.loss(images())["student.loss_denoising"], terms["student.loss_denoising"])
    assert asked(model, "teacher") == []
    assert model.teacher_forwards == 0


def test_weight_zero_keeps_the_students_own_weights():
    model = distiller(dict(type="FromTeacher", weight=0.0), toy(seed=1), toy(seed=2), task_weight=1.0)
    assert model.initial_hash == hash_state(toy(seed=2).state_dict())
