"""DHO against float64 numpy, its invariances, and what its gradients reach."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from limbeck.engine.distiller import Distiller
from limbeck.engine.method import LinkInputs
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, DeadLoss, ShapeMismatch
from limbeck.multimodal.vlm.methods.dho import DHO, dho_loss
from tests.multimodal.vlm.toys import distiller, mixed_batch, softmax


def reference(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    total = 0.0
    for z, t in zip(student.astype(np.float64), teacher.astype(np.float64)):
        q, p = softmax(z / temperature), softmax(t / temperature)
        total += sum(a * (np.log(a) - np.log(b)) for a, b in zip(p, q))
    return temperature**2 * total / len(student)


def logits(rows: int = 6, classes: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 3 * torch.randn(2, rows, classes, generator=generator)
    return student, teacher


def terms_of(targets: list[int], **options) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    student, teacher = logits(len(targets))
    student.requires_grad_()
    link = DHO(**options)
    rows = torch.tensor(targets) >= 0
    tapped = student if link.unlabelled else student[rows]
    found = link(LinkInputs(student=[tapped], teacher=[teacher], targets=torch.tensor(targets)))
    return found, student, teacher


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_each_term_is_the_mean_over_its_own_rows(temperature):
    targets = [2, -1, 0, -1, -1, 1]
    found, student, teacher = terms_of(targets, temperature=temperature)
    assert list(found) == ["labelled", "unlabelled"]
    s, t, known = student.detach().numpy(), teacher.numpy(), np.array(targets) >= 0
    for name, rows in (("labelled", known), ("unlabelled", ~known)):
        assert found[name].item() == pytest.approx(reference(s[rows], t[rows], temperature), rel=1e-5)


@pytest.mark.parametrize(("option", "left"), [("labelled", "unlabelled"), ("unlabelled", "labelled")])
def test_options_leave_a_term_out(option, left):
    both, _, _ = terms_of([2, -1, 0, -1, -1, 1])
    found, _, _ = terms_of([2, -1, 0, -1, -1, 1], **{option: False})
    assert list(found) == [left]
    torch.testing.assert_close(found[left], both[left])


def test_gradient_is_temperature_over_rows_times_difference_of_probabilities():
    student, teacher = logits()
    student.requires_grad_()
    dho_loss(student, teacher, temperature=2.0).backward()
    s, t = student.detach().double().numpy(), teacher.double().numpy()
    np.testing.assert_allclose(student.grad.numpy(), 2.0 / 6 * (softmax(s / 2) - softmax(t / 2)), rtol=1e-4, atol=1e-6)


def test_never_negative_zero_at_equality_and_blind_to_a_constant_per_image():
    student, teacher = logits(20)
    assert dho_loss(student, teacher).item() > 0
    assert dho_loss(teacher.clone(), teacher).item() == pytest.approx(0.0, abs=1e-6)
    shift = 10 * torch.randn(20, 1, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(dho_loss(student, teacher + shift), dho_loss(student, teacher), rtol=1e-4, atol=1e-5)


def test_teacher_gets_no_gradient():
    student, teacher = (x.requires_grad_() for x in logits())
    dho_loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_no_rows_give_zero_with_a_graph():
    for targets, empty in (([0, 1, 2], "unlabelled"), ([-1, -1], "labelled")):
        found, student, _ = terms_of(targets)
        assert found[empty].item() == 0.0
        sum(found.values()).backward()
        assert bool(student.grad.isfinite().all())


def test_a_term_without_rows_stops_the_run_unless_declared():
    with pytest.raises(DeadLoss, match=r"dho\.loss_unlabelled is exactly zero"):
        distiller().loss(mixed_batch((0, 1, 2)))
    losses = distiller(link=dict(may_be_zero=True)).loss(mixed_batch((0, 1, 2)))
    assert losses["dho.loss_unlabelled"].item() == 0.0


# --- what the gradients reach: tests 1, 2 and 7 of the specification ---


def grads(model: Distiller, names: list[str], batch=None) -> dict[str, torch.Tensor | None]:
    terms = model.loss(mixed_batch() if batch is None else batch)
    student = model.members["student"]
    params = dict(student.named_parameters())
    found = torch.autograd.grad(sum(terms[n] for n in names), list(params.values()), allow_unused=True)
    return dict(zip(params, found))


def test_each_loss_reaches_the_backbone_and_its_own_head_alone():
    task = grads(distiller(), ["student.loss_ce"])
    kd = grads(distiller(), ["dho.loss_labelled", "dho.loss_unlabelled"])
    for name in ("weight", "bias"):
        assert task[f"kd_head.{name}"] is None
        assert kd[f"ce_head.{name}"] is None
        assert task[f"ce_head.{name}"].abs().sum() > 0
        assert kd[f"kd_head.{name}"].abs().sum() > 0
        assert task[f"backbone.fc.{name}"].abs().sum() > 0
        assert kd[f"backbone.fc.{name}"].abs().sum() > 0
    model = distiller()
    sum(model.loss(mixed_batch()).values()).backward()
    assert all(p.grad is None for p in model.frozen["teacher"].parameters())


def test_tied_heads_are_ce_and_kd_on_one_head():
    one, two = distiller(None), distiller("linear")
    heads = two.members["student"]
    heads.kd_head = heads.ce_head  # one parameter
    batch = mixed_batch()
    losses = [model.loss(batch) for model in (one, two)]
    assert losses[0].keys() == losses[1].keys()
    for name in losses[0]:
        torch.testing.assert_close(losses[0][name], losses[1][name])
    names = list(losses[0])
    first, second = grads(one, names), grads(two, names)
    for name in ("backbone.fc.weight", "ce_head.weight"):
        torch.testing.assert_close(first[name], second[name])


def test_weights_of_the_objective_are_the_configs():
    scaled = distiller(task_weight=0.3, link=dict(weight=0.7)).loss(mixed_batch())
    plain = distiller(task_weight=1.0, link=dict(weight=1.0)).loss(mixed_batch())
    for name, factor in (("student.loss_ce", 0.3), ("dho.loss_labelled", 0.7), ("dho.loss_unlabelled", 0.7)):
        torch.testing.assert_close(scaled[name], factor * plain[name])


# --- building ---


def test_registry_builds_it_and_defaults_are_the_papers():
    link = METHODS.make({"type": "DHO"})
    assert (link.temperature, link.weight, link.taps) == (2.0, 0.5, [("logits", "kd_logits")])
    assert METHODS.make({"type": "DHO", "unlabelled": False}).taps == [("logits", "labelled_kd_logits")]
    assert METHODS.make({"type": "DHO", "taps": [("logits", "logits")]}).taps == [("logits", "logits")]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(temperature=0.0), "temperature > 0"),
        (dict(labelled=False, unlabelled=False), "distils nothing"),
    ],
)
def test_links_that_mean_nothing_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        DHO(**options)


def test_logits_of_other_classes_and_mixed_targets_are_refused():
    with pytest.raises(ShapeMismatch, match="a student head of 5 classes"):
        DHO().connect([(2, 5)], [(2, 3)])
    with pytest.raises(ConfigError, match="one pair"):
        DHO(taps=[("logits", "logits"), ("logits", "kd_logits")]).connect([(2, 3)] * 2, [(2, 3)] * 2)
    student, teacher = logits(2)
    with pytest.raises(ShapeMismatch, match="leave out the link that mixes them"):
        DHO()(LinkInputs(student=[student], teacher=[teacher], targets=torch.full((2, 4), 0.25)))
