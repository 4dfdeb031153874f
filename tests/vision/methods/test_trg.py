"""TRG: the graph and its three losses against naive references, their invariances, and where gradients go."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.engine.adapter import Batch
from limbeck.engine.distiller import Distiller
from limbeck.engine.method import LinkInputs
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName
from limbeck.vision.methods.trg import (
    TRG,
    affinity,
    context,
    falling_temperature,
    global_loss,
    inner_loss,
    local_loss,
    sample_tokens,
)
from tests.vision.methods import conftest as common

M, D_S, D_T = 12, 5, 7
STUDENT, TEACHER = common.randn(M, D_S, seed=0), common.randn(M, D_T, seed=1)


def rotation(size: int) -> Tensor:
    return torch.linalg.qr(common.randn(size, size, seed=42))[0]


def make(teacher: tuple[int, ...] = (2, D_T, 8, 8), student: tuple[int, ...] = (2, D_S, 8, 8), **kwargs) -> TRG:
    torch.manual_seed(0)
    link = TRG(**kwargs)
    link.connect([teacher], [student])
    return link


def inputs(student: Tensor, teacher: Tensor, progress: float = 0.0, draw: int = 0) -> LinkInputs:
    return LinkInputs(student=[student], teacher=[teacher], progress=progress, draw=draw)


def maps(size: int = 3, seed: int = 0, side: int = 8) -> tuple[Tensor, Tensor]:
    return common.randn(size, D_S, side, side, seed=seed), common.randn(size, D_T, side, side, seed=seed + 1)


# --- the graph ---


def naive_affinity(x: np.ndarray, k: int) -> np.ndarray:
    m = len(x)
    distance = [[sum((a - b) ** 2 for a, b in zip(x[i], x[j])) for j in range(m)] for i in range(m)]
    edges = []
    for j in range(m):
        ranked = sorted((i for i in range(m) if i != j), key=lambda i: distance[i][j])
        edges += [(i, j) for i in ranked[:k]]
    sigma = sum(distance[i][j] for i, j in edges) / len(edges)
    found = np.zeros((m, m))
    for i, j in edges:
        found[i, j] = math.exp(-distance[i][j] / (2 * sigma))
    return found


@pytest.mark.parametrize("k", [1, 4, 11, 50])
def test_graph_matches_naive_reference_and_has_k_neighbours_in_every_column(k: int) -> None:
    found = affinity(TEACHER, k)
    np.testing.assert_allclose(
        found.numpy(), naive_affinity(common.array(TEACHER), min(k, M - 1)), rtol=1e-4, atol=1e-6
    )
    assert ((found > 0).sum(dim=0) == min(k, M - 1)).all()
    assert (found.diagonal() == 0).all()


def test_graph_of_equal_tokens_is_finite_with_a_finite_gradient() -> None:
    x = torch.ones(6, 3, requires_grad=True)
    found = affinity(x, 2)
    found.sum().backward()
    assert found.max().item() == 1.0
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


# --- the losses ---


def naive_local(student: np.ndarray, teacher: np.ndarray, k: int = 3, direction: str = "teacher") -> float:
    a, b = naive_affinity(teacher, k), naive_affinity(student, k)
    if direction == "student":
        a, b = b, a
    total = 0.0
    for row_a, row_b in zip(a, b):
        total += sum(p * math.log(p / q) for p, q in zip(common.softmax(row_a), common.softmax(row_b)))
    return total / len(a)


@pytest.mark.parametrize("direction", ["teacher", "student"])
def test_local_loss_and_gradient_match_naive_reference(direction: str) -> None:
    common.check_reference(
        lambda s, t: local_loss(s, t, neighbours=3, direction=direction),
        lambda s, t: naive_local(s, t, 3, direction),
        STUDENT,
        TEACHER,
    )


def test_global_loss_and_gradient_match_naive_reference() -> None:
    def reference(student: np.ndarray, teacher: np.ndarray) -> float:
        s, t = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (student, teacher))
        total = 0.0
        for i in range(len(s)):
            powers = [math.exp(float(s[i] @ t[j]) / 0.2) for j in range(len(t))]
            total -= math.log(powers[i] / sum(powers))
        return total / len(s)

    common.check_reference(
        lambda s, t: global_loss(s, t, temperature=0.2), reference, STUDENT, common.randn(M, D_S, seed=1)
    )


def test_inner_loss_and_gradient_match_naive_reference() -> None:
    def contexts(x: np.ndarray) -> list[list[float]]:
        scale = math.sqrt(x.shape[2])
        return [common.softmax(np.array([float(a @ b) / scale for b in image])) for image in x for a in image]

    def reference(student: np.ndarray, teacher: np.ndarray) -> float:
        pairs = [(a, b) for r, q in zip(contexts(student), contexts(teacher)) for a, b in zip(r, q)]
        return sum((a - b) ** 2 for a, b in pairs) / len(pairs)

    common.check_reference(inner_loss, reference, common.randn(2, 4, D_S, seed=0), common.randn(2, 4, D_T, seed=1))


def test_equal_tokens_cost_nothing_but_the_global_loss() -> None:
    assert abs(local_loss(TEACHER, TEACHER).item()) < 1e-6
    assert inner_loss(TEACHER[None], TEACHER[None]).item() == 0.0
    equal = global_loss(TEACHER, TEACHER, temperature=0.1)
    assert 0 < equal < global_loss(TEACHER.roll(1, 0), TEACHER, temperature=0.1)


def test_context_rows_sum_to_one_and_bound_the_inner_loss() -> None:
    x = 30 * common.randn(3, 6, 4)
    torch.testing.assert_close(context(x).sum(2), torch.ones(3, 6))
    assert inner_loss(30 * common.randn(3, 6, 4, seed=1), x).item() <= 2 / 6


def test_rotation_leaves_all_relations_and_translation_the_graph() -> None:
    turned = STUDENT @ rotation(D_S)
    torch.testing.assert_close(local_loss(turned + 5.0, TEACHER), local_loss(STUDENT, TEACHER), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(local_loss(3.0 * STUDENT, TEACHER), local_loss(STUDENT, TEACHER), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(inner_loss(turned[None], TEACHER[None]), inner_loss(STUDENT[None], TEACHER[None]))


def test_joint_order_of_the_tokens_changes_nothing() -> None:
    order = torch.randperm(M, generator=torch.Generator().manual_seed(0))
    same = common.randn(M, D_S, seed=3)
    for loss, t in (
        (lambda s, t: local_loss(s, t, neighbours=4), TEACHER),
        (lambda s, t: global_loss(s, t, temperature=0.1), same),
        (lambda s, t: inner_loss(s[None], t[None]), TEACHER),
    ):
        torch.testing.assert_close(loss(STUDENT[order], t[order]), loss(STUDENT, t))
        assert not torch.isclose(loss(STUDENT[order], t), loss(STUDENT, t))


def test_gradient_reaches_student_only() -> None:
    common.check_one_sided(lambda s, t: local_loss(s, t, neighbours=3), STUDENT, TEACHER)
    common.check_one_sided(lambda s, t: inner_loss(s[None], t[None]), STUDENT, TEACHER)


def test_global_temperature_falls_from_start_to_end() -> None:
    found = [falling_temperature(p / 20) for p in range(21)]
    assert found[0] == pytest.approx(0.5)
    assert found[10] == pytest.approx((0.5 + 0.07) / 2)
    assert found[-1] == pytest.approx(0.07)
    assert all(a > b for a, b in pairwise(found))


# --- tokens ---


def test_sampled_places_are_the_same_on_both_sides_and_distinct() -> None:
    place = torch.arange(16.0).view(1, 16, 1).expand(3, 16, 1) + 100 * torch.arange(3.0).view(3, 1, 1)
    t, s = sample_tokens(place, place.repeat(1, 1, 2), 5, torch.Generator().manual_seed(0))
    assert t.shape == (15, 1)
    assert torch.equal(s, t.repeat(1, 2))
    assert len(set(t.flatten().tolist())) == 15
    assert [int(x) // 100 for x in t.flatten()] == [0] * 5 + [1] * 5 + [2] * 5
    assert len({tuple(row) for row in (t.view(3, 5) % 100).tolist()}) == 3  # each image has its own
    again, _ = sample_tokens(place, place, 5, torch.Generator().manual_seed(0))
    other, _ = sample_tokens(place, place, 5, torch.Generator().manual_seed(1))
    assert torch.equal(again, t)
    assert not torch.equal(other, t)
    whole, _ = sample_tokens(place, place, 16, torch.Generator())
    assert torch.equal(whole, place.flatten(0, 1))


def test_terms_are_the_losses_of_the_pooled_grid() -> None:
    student, teacher = maps()
    link = make(grid=4, tokens=16, neighbours=3, normalise=False, alpha=2.0, beta=3.0, gamma=0.25, tau=(0.4, 0.1))
    terms = link(inputs(student, teacher, progress=1.0))

    def grid(x: Tensor) -> Tensor:  # means of 2 × 2 pixels, row by row
        rows = [x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((2, 3)) for i in range(4) for j in range(4)]
        return torch.stack(rows, dim=1)

    s, t = grid(student), grid(teacher)
    torch.testing.assert_close(terms["inner"], 2 * inner_loss(s, t))
    s, t = s.flatten(0, 1), t.flatten(0, 1)
    torch.testing.assert_close(terms["local"], 3 * local_loss(s, t, neighbours=3), rtol=1e-4, atol=1e-6)
    projected = link.project_student(s), link.project_teacher(t)
    torch.testing.assert_close(terms["global"], 0.25 * global_loss(*projected, temperature=0.1))


def test_unit_length_makes_the_local_loss_blind_to_each_tokens_scale() -> None:
    student, teacher = maps(side=4)
    scaled = student * (1 + torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)))
    for normalise in (True, False):
        link = make((2, D_T, 4, 4), (2, D_S, 4, 4), normalise=normalise)
        a, b = (link(inputs(x, teacher))["local"] for x in (scaled, student))
        assert torch.isclose(a, b, rtol=1e-4) == normalise


@pytest.mark.parametrize(
    ("teacher", "student", "options", "size"),
    [
        ((2, D_T, 8, 8), (2, D_S, 4, 4), {}, (4, 4)),
        ((2, D_T, 8, 8), (2, D_S, 3, 5), {}, (3, 4)),
        ((2, D_T, 16, 16), (2, D_S, 8, 8), {"grid": 7}, (7, 7)),
        ((2, 65, D_T), (2, D_S, 8, 8), {}, (4, 4)),
        ((2, 64, D_T), (2, 18, D_S), {"student_prefix": 2}, (4, 4)),
        ((2, 8, 8, D_T), (2, D_S, 8, 8), {"teacher_layout": "nhwc"}, (4, 4)),
    ],
)
def test_maps_and_token_sequences_of_any_grid_are_linked(
    teacher: tuple[int, ...], student: tuple[int, ...], options: dict, size: tuple[int, int]
) -> None:
    link = make(teacher, student, **options)
    assert link.size == size
    s = common.randn(*student, seed=0).requires_grad_()
    terms = link(inputs(s, common.randn(*teacher, seed=1)))
    for term in terms.values():
        assert torch.autograd.grad(term, s, retain_graph=True)[0].abs().max() > 0


def test_class_tokens_are_left_out() -> None:
    tokens = common.randn(2, 17, D_T, seed=0)
    link = make((2, 17, D_T), (2, D_S, 4, 4), tokens=16)
    student = common.randn(2, D_S, 4, 4, seed=1)
    expected = link(inputs(student, tokens))
    changed = tokens.clone()
    changed[:, 0] = 100.0
    patches = tokens[:, 1:].transpose(1, 2).reshape(2, D_T, 4, 4)
    as_map = make((2, D_T, 4, 4), (2, D_S, 4, 4), tokens=16)
    as_map.load_state_dict(link.state_dict())
    for other in (link(inputs(student, changed)), as_map(inputs(student, patches))):
        torch.testing.assert_close(other, expected)


def test_order_of_the_images_changes_nothing_where_all_tokens_are_nodes() -> None:
    link, (student, teacher) = make(tokens=16), maps()
    flipped = link(inputs(student.flip(0), teacher.flip(0)))
    torch.testing.assert_close(flipped, link(inputs(student, teacher)), rtol=1e-4, atol=1e-6)


def test_single_image_has_a_graph_of_its_own_tokens() -> None:
    student, teacher = maps(size=1)
    terms = make()(inputs(student, teacher))
    assert all(term.item() > 0 for term in terms.values())


def test_gradient_reaches_the_projectors_through_the_global_term_alone() -> None:
    link, (student, teacher) = make(), maps()
    teacher.requires_grad_()
    terms = link(inputs(student.requires_grad_(), teacher))
    own = list(link.parameters())
    for name, term in terms.items():
        grads = torch.autograd.grad(term, [student, teacher, *own], allow_unused=True, retain_graph=True)
        assert grads[0] is not None
        assert grads[0].abs().max() > 0
        assert grads[1] is None
        assert all((g is not None) == (name == "global") for g in grads[2:])


@pytest.mark.parametrize(
    ("factors", "left"),
    [((0, 1, 1), {"local", "global"}), ((1, 0, 1), {"inner", "global"}), ((1, 1, 0), {"inner", "local"})],
)
def test_factor_of_zero_drops_its_term(factors: tuple[float, float, float], left: set[str]) -> None:
    alpha, beta, gamma = factors
    link = make(alpha=alpha, beta=beta, gamma=gamma)
    assert set(link(inputs(*maps()))) == left
    assert bool(list(link.parameters())) == bool(gamma)


@pytest.mark.parametrize("dtype", common.HALVES)
@pytest.mark.parametrize("term", ["inner", "local", "global"])
def test_half_precision_is_computed_in_float32(term: str, dtype: torch.dtype) -> None:
    link = make()
    common.check_half(lambda s, t: link(inputs(s, t))[term], *maps(), dtype)


# --- bad input, the engine ---


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        ((2, D_T), (2, D_S), "one map .* or tokens"),
        ((2, D_T, 8, 8), (3, D_S, 8, 8), "of one batch"),
        ((2, D_T, 8, 8), (2, D_S, 1, 1), "one common token an image, which has no relations"),
        ((2, 51, D_T), (2, D_S, 8, 8), "TRG: teacher tap: 51 tokens .* make no square grid"),
    ],
)
def test_taps_that_do_not_fit_are_named(teacher: tuple[int, ...], student: tuple[int, ...], message: str) -> None:
    with pytest.raises(ShapeMismatch, match=message):
        make(teacher, student)


@pytest.mark.parametrize(
    "options",
    [
        {"grid": 1},
        {"tokens": 1},
        {"neighbours": 0},
        {"dim": 0},
        {"tau": (0.5, 0.0)},
        {"alpha": -1.0},
        {"alpha": 0, "beta": 0, "gamma": 0},
    ],
)
def test_options_out_of_range_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError, match="TRG needs"):
        TRG(**options)


def test_registry_builds_it_and_refuses_typos() -> None:
    common.check_registered("TRG", TRG, weight=1.0, typo="neighbors", meant="neighbours", neighbours=8)
    assert TRG().taps == [("layer3", "layer3")]
    with pytest.raises(UnknownName, match="unknown direction 'studnt' of TRG; did you mean 'student'"):
        TRG(direction="studnt")


def test_distiller_trains_it_beside_kd() -> None:
    net = dict(type="CIFARResNet", depth=8, in_chans=1, num_classes=3, input_size=(1, 16, 16))
    members = {
        "teacher": dict(type="frozen", model={**net, "width": 4}, initial_weights=True),
        "student": dict(type="trained", model={**net, "width": 2}),
    }
    links = [dict(type="KD"), dict(type="TRG")]
    model = Distiller(members=members, links=links, adapter=dict(type="VisionAdapter")).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    batch = Batch(common.randn(16, 1, 16, 16), targets=torch.arange(16) % 3, ids=torch.arange(16))
    losses = []
    for _ in range(20):
        terms = model.loss(batch)
        losses.append(sum(terms[f"trg1.loss_{name}"].item() for name in ("inner", "local", "global")))
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert not any("project" in key for key in model.deploy.state_dict())
