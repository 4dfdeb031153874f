"""DisWOT's two similarities against naive loops, the score's properties, and that scoring leaves no trace."""

from __future__ import annotations

import math

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.engine.weights import hash_state
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName
from limbeck.vision._search_space import DepthResNet
from limbeck.vision.models import CIFARResNet
from limbeck.vision.search import (
    Scorer,
    random_state,
    relation_similarity,
    score,
    semantic_similarity,
    statistics,
)

FORMS = ("class", "channel")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def net(depths=(1, 1, 1), width: int = 4, seed: int = 0) -> DepthResNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DepthResNet(depths, width=width, in_chans=1, num_classes=5, input_size=(1, 12, 12))


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return normal(8, 1, 12, 12), torch.arange(8) % 5


# --- naive references, in float64 and by loops ---


def unit_rows(x: np.ndarray) -> np.ndarray:
    out = np.zeros_like(x)
    for i, row in enumerate(x):
        length = math.sqrt(sum(v * v for v in row))
        if length > 0:
            out[i] = row / length
    return out


def naive_relation(teacher: torch.Tensor, student: torch.Tensor) -> float:
    def gram(x: torch.Tensor) -> np.ndarray:
        flat = x.double().numpy().reshape(len(x), -1)
        return unit_rows(np.array([[sum(a * b) for b in flat] for a in flat]))

    difference = gram(teacher) - gram(student)
    return -float((difference**2).sum()) / len(teacher) ** 2


def naive_channel(teacher: torch.Tensor, student: torch.Tensor) -> float:
    total = 0.0
    for v, w in zip(teacher.double().numpy(), student.double().numpy()):
        total += float(((unit_rows(np.outer(v, v)) - unit_rows(np.outer(w, w))) ** 2).sum())
    return -total / teacher.numel()


def naive_class(teacher: torch.Tensor, student: torch.Tensor) -> float:
    def gram(x: np.ndarray) -> np.ndarray:
        return unit_rows(np.array([[float(np.dot(a, b)) for b in x] for a in x]))

    difference = gram(teacher.double().numpy()) - gram(student.double().numpy())
    return -float((difference**2).sum()) / len(teacher) ** 2


# --- relation ---


def test_relation_is_the_naive_sum_for_maps_of_different_shapes():
    teacher, student = normal(6, 8, 4, 4), normal(6, 3, 7, 5, seed=1)
    assert relation_similarity(teacher, student).item() == pytest.approx(naive_relation(teacher, student), abs=1e-7)


def test_relation_is_zero_for_equal_maps_and_stays_within_its_bound():
    maps = [normal(6, 8, 4, 4, seed=s) for s in range(10)]
    assert relation_similarity(maps[0], maps[0]).item() == 0.0
    for other in maps[1:]:
        assert -4 / 6 <= relation_similarity(maps[0], other).item() < 0.0
    assert relation_similarity(maps[0], maps[0].flip(0)).item() >= -4 / 6


@pytest.mark.parametrize("factor", [1e-30, 1e-3, 7.0, 1e30])
def test_relation_does_not_see_the_scale(factor):
    teacher, student = normal(6, 8, 4, 4), normal(6, 3, 4, 4, seed=1)
    expected = relation_similarity(teacher, student).item()
    assert relation_similarity(factor * teacher, student).item() == pytest.approx(expected, rel=1e-4)
    assert relation_similarity(teacher, factor * student).item() == pytest.approx(expected, rel=1e-4)


def test_relation_needs_the_joint_order_of_the_batch():
    teacher, student, order = normal(6, 8), normal(6, 3, seed=1), torch.tensor([3, 1, 5, 0, 2, 4])
    expected = relation_similarity(teacher, student).item()
    assert relation_similarity(teacher[order], student[order]).item() == pytest.approx(expected, rel=1e-5)
    assert relation_similarity(teacher[order], student).item() != pytest.approx(expected, rel=1e-2)


def test_relation_of_half_precision_maps_is_computed_in_float32():
    teacher, student = normal(6, 8, 4, 4).half(), normal(6, 3, 4, 4, seed=1).half()
    found = relation_similarity(teacher, student)
    assert found.dtype == torch.float32
    assert found.item() == relation_similarity(teacher.float(), student.float()).item()


def test_relation_rejects_other_batches_and_vectors():
    with pytest.raises(ShapeMismatch, match=r"\(6, 3\).*\(5, 3\)"):
        relation_similarity(normal(6, 3), normal(5, 3))
    with pytest.raises(ShapeMismatch):
        relation_similarity(normal(6), normal(6))


# --- semantic ---


@pytest.mark.parametrize(("form", "naive", "width"), [("class", naive_class, 7), ("channel", naive_channel, 4)])
def test_semantic_is_the_naive_sum(form, naive, width):
    teacher, student = normal(5, 4), normal(5, width, seed=1)
    student[2] = 0.0  # a class that the softmax never reaches
    assert semantic_similarity(teacher, student, form).item() == pytest.approx(naive(teacher, student), abs=1e-12)


def test_semantic_channel_rows_of_zero_entries_are_zero():
    teacher, student = normal(5, 4), normal(5, 4, seed=1)
    teacher[1, 2] = student[3, 0] = student[1, 2] = 0.0
    found = semantic_similarity(teacher, student, "channel").item()
    assert found == pytest.approx(naive_channel(teacher, student), abs=1e-12)


@pytest.mark.parametrize(("form", "bound"), [("class", 4 / 5), ("channel", 4.0)])
def test_semantic_is_zero_for_equal_gradients_and_stays_within_its_bound(form, bound):
    first = normal(5, 4)
    assert semantic_similarity(first, first, form).item() == pytest.approx(0.0, abs=1e-12)
    for seed in range(1, 10):
        assert -bound <= semantic_similarity(first, normal(5, 4, seed=seed), form).item() < 0.0


def test_semantic_channel_does_not_see_a_factor_on_a_class():
    teacher, student = normal(5, 4), normal(5, 4, seed=1)
    factors = torch.tensor([1e-12, -3.0, 1.0, 1e9, -0.1])[:, None]
    expected = semantic_similarity(teacher, student, "channel").item()
    found = semantic_similarity(teacher, factors * student, "channel").item()
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("factor", [-3.0, 1e-30, 1e30])
def test_semantic_class_does_not_see_a_common_factor(factor):
    teacher, student = normal(5, 4), normal(5, 7, seed=1)
    expected = semantic_similarity(teacher, student).item()
    assert semantic_similarity(teacher, factor * student).item() == pytest.approx(expected, rel=1e-5)


def test_semantic_channel_refuses_other_widths_and_both_refuse_other_classes():
    with pytest.raises(ShapeMismatch, match="form 'class'"):
        semantic_similarity(normal(5, 4), normal(5, 7), "channel")
    for form in FORMS:
        with pytest.raises(ShapeMismatch, match="same K classes"):
            semantic_similarity(normal(5, 4), normal(6, 4), form)
    with pytest.raises(UnknownName, match="'chanel'"):
        semantic_similarity(normal(5, 4), normal(5, 4), "chanel")  # type: ignore[arg-type]


# --- what a network gives ---


def test_statistics_are_those_of_a_plain_forward_and_backward(batch):
    images, labels = batch
    model = net((1, 3, 1))
    found = statistics(model, images, labels, initialise=False)
    features = model.train().forward_features(images)
    F.cross_entropy(model.fc(features.mean((2, 3))), labels).backward()
    assert torch.allclose(found.gradient, model.fc.weight.grad, atol=1e-7)
    flat = features.flatten(1)
    expected = F.normalize(flat @ flat.T, dim=1)
    assert torch.allclose(found.relations, expected, atol=1e-6)


def test_random_state_is_unit_normal_with_neutral_normalisation():
    model = net((5, 5, 5), width=16)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    torch.manual_seed(0)
    state = random_state(model)
    weights = state["layer3.1.conv1.weight"]
    assert abs(weights.mean().item()) < 0.02
    assert abs(weights.std().item() - 1.0) < 0.02
    assert torch.equal(state["fc.bias"], torch.zeros(5))
    assert torch.equal(state["bn1.weight"], torch.ones(16))
    assert torch.equal(state["bn1.bias"], torch.zeros(16))
    assert state.keys() == {**dict(model.named_parameters()), **dict(model.named_buffers())}.keys()


def test_scoring_leaves_weights_buffers_gradients_modes_and_random_state(batch):
    images, labels = batch
    teacher, student = net((3, 3, 3), 8).eval(), net()
    teacher.requires_grad_(False)
    student.layer2.eval()
    before = [hash_state(m.state_dict()) for m in (teacher, student)]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with torch.no_grad():
        score(teacher, student, images, labels, repeats=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert [hash_state(m.state_dict()) for m in (teacher, student)] == before
    assert all(p.grad is None for m in (teacher, student) for p in m.parameters())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any(m.training for m in teacher.modules())
    assert not any(m.training for m in student.layer2.modules())
    assert student.training
    assert student.layer1.training


# --- the score ---


@pytest.mark.parametrize("form", FORMS)
def test_score_of_a_network_with_itself_is_zero_the_maximum(form, batch):
    images, labels = batch
    teacher = net((3, 1, 1))
    found = Scorer(teacher, images, labels, form=form, initialise=False)(teacher)
    assert found.total == pytest.approx(0.0, abs=1e-12)
    other = Scorer(teacher, images, labels, form=form, initialise=False)(net((3, 1, 1), seed=1))
    assert other.relation < 0
    assert other.semantic < 0


def test_score_depends_on_seed_alone(batch):
    images, labels = batch
    teacher = net((3, 3, 3), 8)
    first = score(teacher, net(), images, labels, seed=3)
    torch.manual_seed(123)
    assert score(teacher, net(seed=9), images, labels, seed=3) == first  # whatever its own weights are
    assert score(teacher, net(), images, labels, seed=4) != first
    assert first.total == first.relation + first.semantic
    assert first.total < 0


def test_score_is_the_mean_over_repeats(batch):
    images, labels = batch
    teacher, student = net((3, 3, 3), 8), net()
    found = score(teacher, student, images, labels, repeats=3)
    parts = [
        [statistics(m, images, labels, name=f"{name} {i}") for m, name in ((teacher, "teacher"), (student, "student"))]
        for i in range(3)
    ]
    relation = [-F.mse_loss(s.relations, t.relations).item() for t, s in parts]
    semantic = [semantic_similarity(t.gradient, s.gradient).item() for t, s in parts]
    assert len(set(relation)) == 3
    assert found.relation == pytest.approx(sum(relation) / 3)
    assert found.semantic == pytest.approx(sum(semantic) / 3)


def test_scorer_runs_the_teacher_once_for_all_candidates(batch):
    images, labels = batch
    teacher, calls = net((3, 3, 3), 8), []
    teacher.layer1.register_forward_hook(lambda *_: calls.append(1))
    scorer = Scorer(teacher, images, labels, repeats=2)
    found = [scorer(net(d)) for d in ((1, 1, 1), (1, 3, 1), (3, 1, 1))]
    assert len(calls) == 2
    assert len({f.total for f in found}) == 3


def test_score_of_a_timm_student_of_another_width(batch):
    images, labels = batch
    student = timm.create_model("mobilenetv3_small_050", num_classes=5, in_chans=1)  # works in place, has a conv head
    found = score(net((3, 3, 3), 8), student, images, labels)
    assert -4 / 8 - 4 / 5 <= found.total < 0
    with pytest.raises(ShapeMismatch):
        score(net((3, 3, 3), 8), student, images, labels, form="channel")


def test_score_refuses_networks_without_the_parts_and_bad_arguments(batch):
    images, labels = batch
    teacher = net()
    with pytest.raises(ConfigError, match="cannot score Linear: it needs forward_features"):
        score(teacher, nn.Linear(3, 3), images, labels)
    with pytest.raises(ConfigError, match="repeats is 1 or more; got 0"):
        score(teacher, net(), images, labels, repeats=0)
    with pytest.raises(UnknownName, match="form"):
        score(teacher, net(), images, labels, form="rows")  # type: ignore[arg-type]
    with pytest.raises(ShapeMismatch, match="same K classes"):
        score(teacher, CIFARResNet(8, 4, in_chans=1, num_classes=6), images, labels)
    with pytest.raises(ConfigError, match="not finite"):
        score(teacher, net(), torch.full_like(images, float("nan")), labels)
