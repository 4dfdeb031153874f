"""Baselines that distil first and learn the labels afterwards, or the reverse: one loss at a time, by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.engine.distiller import Distiller
from limbeck.engine.run import execute
from limbeck.multimodal.vlm.configs._base_.parts import few_labels
from tests.multimodal.vlm.test_run import options, tones_pair, tones_run
from tests.multimodal.vlm.toys import mixed_batch, softmax, student

LABELS = (0, -1, 2, -1, -1, 1)
KNOWN, HIDDEN = [0, 2, 5], [1, 3, 4]
METHODS = {name: few_labels(student(None))[name] for name in ("KD-then-CE", "CE-then-KD")}


def built(method: str, progress: float) -> Distiller:
    spec = tones_pair(methods=METHODS).methods[method]
    members = dict(
        student=dict(type="trained", model=student(None)),
        teacher=dict(type="frozen", model=dict(type="LinearClassifier"), initial_weights=True),
    )
    model = Distiller(
        members=members,
        links=spec.links,
        adapter=dict(type="VLMAdapter"),
        task_weight=spec.task_weight,
        task_schedule=spec.task_schedule,
    )
    model.progress = progress
    return model


def gradients(model: Distiller, labels: tuple[int, ...] = LABELS) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.stack(list(model.loss(mixed_batch(labels)).values())).sum().backward()
    return {name: p.grad.clone() for name, p in model.members["student"].named_parameters()}


def of_labels(z: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Gradient of the cross entropy on z (6, 3): the difference to one-hot rows, on labelled ones alone."""
    found = np.zeros_like(z)
    found[KNOWN] = (softmax(z[KNOWN]) - np.eye(3)[[0, 2, 1]]) / 3
    return found


def of_teacher(z: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Gradient of T² KL, T = 2, each part's mean apart."""
    found = np.zeros_like(z)
    for rows in (KNOWN, HIDDEN):
        found[rows] = 2 * (softmax(z[rows] / 2) - softmax(t[rows] / 2)) / len(rows)
    return found


PHASES = [
    ("KD-then-CE", 0.0, of_teacher),
    ("KD-then-CE", 0.499, of_teacher),
    ("KD-then-CE", 0.5, of_labels),
    ("KD-then-CE", 0.999, of_labels),
    ("CE-then-KD", 0.0, of_labels),
    ("CE-then-KD", 0.499, of_labels),
    ("CE-then-KD", 0.5, of_teacher),
    ("CE-then-KD", 0.999, of_teacher),
]


@pytest.mark.parametrize(("method", "progress", "by_hand"), PHASES)
def test_gradient_is_that_of_one_loss_alone(method, progress, by_hand):
    model, images = built(method, progress), mixed_batch(LABELS).inputs
    own, teacher = model.members["student"], model.frozen["teacher"]
    with torch.no_grad():
        features = own.features(images).double().numpy()
        z, t = own(images).double().numpy(), teacher(images).double().numpy()
    found = gradients(model)
    expected = by_hand(z, t)
    np.testing.assert_allclose(found["ce_head.weight"], expected.T @ features, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["ce_head.bias"], expected.sum(0), rtol=1e-4, atol=1e-6)
    assert found["backbone.fc.weight"].abs().sum() > 0


@pytest.mark.parametrize(("method", "progress", "by_hand"), PHASES)
def test_a_phase_is_blind_to_what_the_other_learns_from(method, progress, by_hand):
    model = built(method, progress)
    before = gradients(model)
    other_labels = gradients(model, (1, -1, 0, -1, -1, 2))
    with torch.no_grad():
        model.frozen["teacher"].fc.weight.neg_()
    other_teacher = gradients(model)
    same = [all(torch.equal(before[k], found[k]) for k in before) for found in (other_labels, other_teacher)]
    assert same == ([True, False] if by_hand is of_teacher else [False, True])


@pytest.mark.parametrize(("method", "kd_epochs"), [("KD-then-CE", (1, 2)), ("CE-then-KD", (3, 4))])
def test_a_run_changes_over_at_half_of_its_updates(tmp_path, method, kd_epochs):
    run = tones_run(tmp_path, method, methods=METHODS)
    record = execute(run, options(tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "runs" / run.id / "log.jsonl").read_text().splitlines()]
    epochs: dict[int, dict[str, Any]] = {line["epoch"]: line for line in lines if "val" not in line}
    assert list(epochs) == [1, 2, 3, 4]
    for number, line in epochs.items():
        distils = number in kd_epochs
        assert ("dho.loss_labelled" in line) == ("dho.loss_unlabelled" in line) == distils
        assert (line["student.loss_ce"] == 0.0) == distils
    assert record.cost.teacher_forwards == 2 * 3 * 12  # the other half never asks the teacher
    assert record.student.name == "DualHead (LinearFeatures)"
    assert "alpha" not in record.metrics
