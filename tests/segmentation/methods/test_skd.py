"""SKD: the pair-wise term against loops over pairs, the discriminator's parts, and that each term trains one side."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from limbeck.engine.config import RecipeConfig
from limbeck.engine.losses import RESIZED
from limbeck.engine.runner import JointOptimWrapper, build_optim_wrapper
from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.segmentation.methods.skd import SKD, Discriminator, SelfAttention, discriminator_loss, pair_wise_loss
from tests.segmentation.methods.test_cwd import check_learns, toy_batch, toy_distiller
from tests.vision.methods import conftest as common

FEATURE, LOGITS = ("features", "features"), ("logits", "logits")
K = 3


def example(*size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    return common.randn(2, 3, *size, seed=seed), common.randn(2, 5, *size, seed=seed + 50)


# --- pair-wise ---


def cells(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """Largest entry of each cell, those at the end cut off: (B, C, N)."""
    rows, columns = (range(0, n, k) for n, k in zip(x.shape[2:], (height, width)))
    found = [x[:, :, i : i + height, j : j + width].max((2, 3)) for i in rows for j in columns]
    return np.stack(found, axis=2)


def similarity(nodes: np.ndarray) -> np.ndarray:
    """Of every pair of nodes of every image, (B, N, N)."""
    batch, _, count = nodes.shape
    found = np.zeros((batch, count, count))
    for b in range(batch):
        for i in range(count):
            for j in range(count):
                p, q = nodes[b, :, i], nodes[b, :, j]
                found[b, i, j] = p @ q / (np.linalg.norm(p) * np.linalg.norm(q))
    return found


def reference(student: np.ndarray, teacher: np.ndarray, height: int = 2, width: int = 2) -> float:
    s, t = (similarity(cells(x, height, width)) for x in (student, teacher))
    return float(((s - t) ** 2).mean())


@pytest.mark.parametrize(("kernel", "size"), [(1, (2, 3)), (2, (4, 5)), (3, (4, 4))])
def test_pair_term_matches_loops_over_pairs(kernel: int, size: tuple[int, int]) -> None:
    common.check_reference(
        lambda s, t: pair_wise_loss(s, t, kernel=kernel),
        lambda s, t: reference(s, t, kernel, kernel),
        *example(*size),
    )


@pytest.mark.parametrize(
    ("size", "cell", "nodes"), [((8, 8), (4, 4), 4), ((9, 9), (4, 4), 9), ((9, 12), (4, 6), 6), ((5, 1), (2, 1), 3)]
)
def test_ratio_pooling_cuts_off_the_last_cells(size: tuple[int, int], cell: tuple[int, int], nodes: int) -> None:
    student, teacher = example(*size)
    expected = reference(common.array(student), common.array(teacher), *cell)
    assert cells(common.array(student), *cell).shape[2] == nodes
    assert pair_wise_loss(student, teacher, ratio=0.5).item() == pytest.approx(expected, rel=1e-4)


def test_equal_maps_multiples_and_rotations_cost_nothing() -> None:
    _, teacher = example(5, 6)
    rotation = torch.linalg.qr(common.randn(5, 5, seed=9))[0]

    def rotated(x: Tensor) -> Tensor:
        return torch.einsum("ij,bjhw->bihw", rotation, x)

    for copy in (teacher.clone(), 3.0 * teacher):
        assert pair_wise_loss(copy, teacher).item() < 1e-10
    assert pair_wise_loss(rotated(teacher), teacher, kernel=1).item() < 1e-10
    assert pair_wise_loss(rotated(teacher), teacher).item() > 1e-3  # the largest entry of a cell is not a rotation's
    blocks = teacher.repeat_interleave(2, 2).repeat_interleave(2, 3)  # constant in each cell
    assert pair_wise_loss(rotated(blocks), blocks).item() < 1e-10


def test_range_of_the_pair_term() -> None:
    for seed in range(20):
        assert 0 < pair_wise_loss(*example(4, 4, seed=seed), kernel=1).item() <= 4
    # All nodes alike against two opposite groups: half of the entries differ by 2.
    alike, opposite = torch.ones(1, 2, 1, 2), torch.tensor([[[[1.0, -1.0]]]])
    assert pair_wise_loss(alike, opposite, kernel=1).item() == pytest.approx(2.0)


def test_detached_norm_keeps_the_value_and_adds_the_radial_gradient() -> None:
    student, teacher = example(3, 4)
    values, slopes = [], []
    for detach in (False, True):
        leaf = student.clone().requires_grad_()
        loss = pair_wise_loss(leaf, teacher, kernel=1, detach_norm=detach)
        values.append(loss)
        slopes.append(torch.autograd.grad(loss, leaf)[0])
    torch.testing.assert_close(values[0], values[1])
    radial = [(slope * student).sum(1).abs().max() for slope in slopes]
    assert radial[0] < 1e-6  # through the norm, a position's length cannot matter
    assert radial[1] > 1e-3
    unit = student / student.norm(dim=1, keepdim=True)
    tangential = slopes[1] - unit * (slopes[1] * unit).sum(1, keepdim=True)
    torch.testing.assert_close(tangential, slopes[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", common.HALVES)
def test_pair_term_is_computed_in_float32_and_reaches_the_student_only(dtype: torch.dtype) -> None:
    common.check_half(pair_wise_loss, *example(4, 5), dtype)
    common.check_one_sided(pair_wise_loss, *example(4, 5))
    common.check_one_sided(pair_wise_loss, common.randn(1, 3, 4, 4), common.randn(1, 5, 4, 4, seed=1))


# --- the discriminator ---


@pytest.mark.parametrize(
    ("size", "widths", "scores"),
    [
        ((8, 9), [64], (1, 1)),
        ((16, 31), [64, 128], (1, 4)),
        ((45, 60), [64, 128, 256], (2, 4)),
        ((64, 70), [64, 128, 256, 512], (1, 1)),
        ((130, 128), [64, 128, 256, 512], (5, 5)),
    ],
)
def test_discriminator_has_as_many_stages_as_fit(
    size: tuple[int, int], widths: list[int], scores: tuple[int, int]
) -> None:
    with torch.device("meta"):
        net = Discriminator(K, size)
        found = net(torch.zeros(2, K, *size))
    convs = [m for m in net if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convs] == [*widths, 1]
    assert [m.stride[0] for m in convs] == [2] * len(widths) + [1]
    assert sum(isinstance(m, SelfAttention) for m in net) == min(2, len(widths))
    assert tuple(found.shape) == (2, 1, *scores)


def test_logits_too_small_for_a_discriminator_are_named() -> None:
    with pytest.raises(ShapeMismatch, match=r"SKD: teacher logits of 7×30 are too small .* 8×8 or more would fit"):
        Discriminator(K, (7, 30))


def test_attention_starts_as_the_identity_and_mixes_positions_by_their_keys() -> None:
    torch.manual_seed(0)
    layer, x = SelfAttention(16), common.randn(2, 16, 2, 3)
    assert torch.equal(layer(x), x)
    nn.init.constant_(layer.gamma, 0.7)
    q, k, v = (common.array(conv(x).flatten(2)) for conv in (layer.query, layer.key, layer.value))
    expected = common.array(x.flatten(2))
    assert q.shape[1] == 2
    for b in range(2):
        for i in range(6):
            shares = common.softmax(np.array([q[b, :, i] @ k[b, :, j] for j in range(6)]))
            expected[b, :, i] += 0.7 * sum(share * v[b, :, j] for j, share in enumerate(shares))
    np.testing.assert_allclose(layer(x).flatten(2).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_convolutions_are_spectrally_normalised() -> None:
    torch.manual_seed(0)
    net = Discriminator(K, (16, 16))
    for _ in range(60):
        net(common.randn(2, K, 16, 16))
    convs = [m for m in net if isinstance(m, nn.Conv2d)]
    for conv in convs[:-1]:
        assert torch.linalg.matrix_norm(conv.weight.flatten(1), ord=2).item() == pytest.approx(1.0, abs=0.02)


def test_hinge_matches_naive_reference() -> None:
    s, t = common.randn(2, 1, 3, 3, scale=2), common.randn(2, 1, 2, 2, seed=1, scale=2)
    fake = sum(max(0.0, 1 + x) for x in common.array(s).ravel()) / 18
    real = sum(max(0.0, 1 - x) for x in common.array(t).ravel()) / 8
    assert discriminator_loss(s, t).item() == pytest.approx(fake + real, rel=1e-5)
    assert discriminator_loss(torch.full((3,), -1.5), torch.full((3,), 1.5)).item() == 0.0


def make(seed: int = 0, size: tuple[int, int] = (8, 9), **options: Any) -> SKD:
    """The holistic terms alone."""
    torch.manual_seed(seed)
    link = SKD(**{"taps": [LOGITS], "pair_weight": 0.0, "holistic": True, **options})
    link.connect([(2, K, *size)], [(2, K, *size)])
    return link


def scores_of(link: SKD, logits: Tensor) -> Tensor:
    return link.discriminator(logits).mean()


def test_holistic_terms_are_the_scores_of_each_side() -> None:
    link = make(adversarial_weight=0.5).eval()
    student, teacher = common.randn(2, K, 8, 9), common.randn(2, K, 8, 9, seed=1)
    terms = link(common.link_inputs(student, teacher))
    assert sorted(terms) == ["adversarial", "discriminator"]
    torch.testing.assert_close(terms["adversarial"], -0.5 * scores_of(link, student))
    expected = 0.1 * discriminator_loss(link.discriminator(student), link.discriminator(teacher))
    torch.testing.assert_close(terms["discriminator"], expected)


def test_adversarial_gradient_matches_central_differences() -> None:
    link = make(size=(8, 8), adversarial_weight=1.0).eval()
    nn.init.constant_(link.discriminator[-2].gamma, 0.7)  # attention at work
    student = common.randn(1, K, 8, 8).requires_grad_()
    loss = link(common.link_inputs(student, common.randn(1, K, 8, 8, seed=1)))["adversarial"]
    found = torch.autograd.grad(loss, student)[0].double().numpy()
    net = deepcopy(link.discriminator).double()
    with torch.no_grad():
        for i in [(0, 0, 0, 0), (0, 1, 3, 4), (0, 2, 7, 7), (0, 0, 5, 2)]:
            plus, minus = (student.double().clone() for _ in range(2))
            plus[i] += 1e-5
            minus[i] -= 1e-5
            slope = -(net(plus).mean() - net(minus).mean()) / 2e-5
            assert found[i] == pytest.approx(slope.item(), rel=1e-3, abs=1e-6)


def test_each_term_trains_its_own_side_alone() -> None:
    link, student = make(), common.randn(2, K, 8, 9).requires_grad_()
    teacher = common.randn(2, K, 8, 9, seed=1).requires_grad_()
    nn.init.constant_(link.discriminator[-2].gamma, 0.7)  # at 0 its convolutions have no gradient yet
    for term in ("adversarial", "discriminator"):
        loss = link(common.link_inputs(student, teacher))[term]
        own = torch.autograd.grad(loss, [*link.parameters()], allow_unused=True, retain_graph=True)
        reached = torch.autograd.grad(loss, student, allow_unused=True, retain_graph=True)[0]
        assert torch.autograd.grad(loss, teacher, allow_unused=True)[0] is None
        if term == "adversarial":
            assert all(g is None for g in own)
            assert reached.abs().max() > 0
        else:
            assert reached is None
            assert all(g.abs().max() > 0 for g in own if g.dim() > 1)
    assert link.own_terms == {"discriminator"}


@pytest.mark.parametrize("dtype", common.HALVES)
@pytest.mark.parametrize("term", ["adversarial", "discriminator"])
def test_holistic_terms_are_computed_in_float32(term: str, dtype: torch.dtype) -> None:
    link = make(size=(9, 8)).eval()  # in eval mode, or the power iteration would go on between calls
    student, teacher = common.randn(2, K, 8, 9), common.randn(2, K, 9, 8, seed=1)
    sign = 1.0 if link(common.link_inputs(student, teacher))[term] > 0 else -1.0
    common.check_half(lambda s, t: sign * link(common.link_inputs(s, t))[term], student, teacher, dtype)


def test_discriminator_learns_to_tell_the_sides_apart_and_a_student_to_please_it() -> None:
    link = make()
    teacher = common.randn(4, K, 8, 9, seed=1)
    teacher[:, :, ::2] += 2.0  # striped, which batch norm does not take away
    student = common.randn(4, K, 8, 9, seed=2).requires_grad_()
    optimizer = torch.optim.Adam(link.parameters(), lr=2e-3)
    first = link(common.link_inputs(student, teacher))["discriminator"].item()
    for _ in range(40):
        loss = link(common.link_inputs(student, teacher))["discriminator"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * first
    assert student.grad is None
    before = scores_of(link, student).item()
    assert scores_of(link, teacher).item() > before + 1.0
    optimizer = torch.optim.Adam([student], lr=0.05)
    for _ in range(40):
        optimizer.zero_grad()
        link(common.link_inputs(student, teacher))["adversarial"].backward()
        optimizer.step()
    assert scores_of(link, student).item() > before + 1.0


# --- the link ---


def test_link_gives_the_weighted_pair_term_with_its_options() -> None:
    student, teacher = example(6, 6)
    link = SKD(taps=[FEATURE])
    link.connect([tuple(teacher.shape)], [tuple(student.shape)])
    terms = link(common.link_inputs(student, teacher))
    assert list(terms) == ["pair"]
    torch.testing.assert_close(terms["pair"], 10.0 * pair_wise_loss(student, teacher))
    assert not list(link.parameters())
    official = SKD(taps=[FEATURE], pair_weight=0.5, ratio=0.5, detach_norm=True)
    expected = 0.5 * pair_wise_loss(student, teacher, ratio=0.5)
    torch.testing.assert_close(official(common.link_inputs(student, teacher))["pair"], expected)


def test_features_come_before_logits() -> None:
    link = SKD(taps=[FEATURE, LOGITS], holistic=True)
    link.connect([(2, 5, 4, 4), (2, K, 8, 8)], [(2, 3, 4, 4), (2, K, 8, 8)])
    student, teacher = example(4, 4)
    logits = common.randn(2, K, 8, 8), common.randn(2, K, 8, 8, seed=1)
    terms = link(common.link_inputs([student, logits[0]], [teacher, logits[1]]))
    assert sorted(terms) == ["adversarial", "discriminator", "pair"]
    torch.testing.assert_close(terms["pair"], 10.0 * pair_wise_loss(student, teacher))


def test_students_logits_are_resized_and_notes_say_what_is_ours() -> None:
    link = SKD(taps=[LOGITS], pair_weight=0.0, holistic=True)
    link.connect([(2, K, 16, 16)], [(2, K, 8, 8)])
    student = common.randn(2, K, 8, 8).requires_grad_()
    link(common.link_inputs(student, common.randn(2, K, 16, 16)))["adversarial"].backward()
    assert student.grad.abs().max() > 0
    assert "fewer stages" in link.assumption
    assert RESIZED in link.assumption
    assert SKD.assumption == ""
    with torch.device("meta"):
        full = SKD(taps=[LOGITS], pair_weight=0.0, holistic=True)
        full.connect([(2, K, 64, 64)], [(2, K, 64, 64)])
    assert full.assumption == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one pair of taps for features, in order; got None"),
        ({"taps": [FEATURE, LOGITS]}, "one pair of taps for features, in order"),
        ({"taps": [FEATURE], "holistic": True}, "one pair of taps for features and one for logits, in order"),
        ({"taps": [FEATURE], "pair_weight": 0.0}, "above 0 unless holistic=True"),
        ({"taps": [FEATURE], "pair_weight": -1.0}, "needs pair_weight >= 0"),
        ({"taps": [LOGITS], "pair_weight": 0.0, "holistic": True, "adversarial_weight": 0.0}, "adversarial_weight > 0"),
        ({"taps": [FEATURE], "kernel": 0}, "needs kernel >= 1"),
        ({"taps": [FEATURE], "ratio": 1.5}, r"ratio in \(0, 1\]; got 2 and 1.5"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"SKD needs.*{message}|SKD {message}"):
        SKD(**options)


def test_taps_that_do_not_fit_are_named() -> None:
    for teacher, student in (((2, 5, 4, 4), (3, 5, 4, 4)), ((2, 5, 4, 4), (2, 5, 8, 8)), ((2, 5), (2, 5))):
        with pytest.raises(ShapeMismatch, match=r"SKD: teacher map .* do not fit; .*the same stride"):
            pair_wise_loss(torch.zeros(student), torch.zeros(teacher))
        with pytest.raises(ShapeMismatch, match=r"SKD: teacher map .* do not fit"):
            SKD(taps=[FEATURE]).connect([teacher], [student])
    with pytest.raises(ShapeMismatch, match=r"SKD: teacher logits .* a student head of 3 classes"):
        SKD(taps=[LOGITS], pair_weight=0.0, holistic=True).connect([(2, 3, 8, 8)], [(2, 4, 8, 8)])


# --- the engine ---


def test_distiller_trains_the_pair_term_through_the_backbone_alone() -> None:
    model = check_learns("skd.loss_pair", dict(type="SKD", taps=[FEATURE]))
    pair = model.loss(toy_batch())["skd.loss_pair"]
    model.zero_grad()
    pair.backward()
    assert model.deploy.features[0].weight.grad.abs().max() > 0
    assert model.deploy.classifier.weight.grad is None


def test_discriminator_has_its_own_optimiser_and_each_step_moves_its_own_side() -> None:
    model, batch = toy_distiller(dict(type="SKD", taps=[FEATURE, LOGITS], holistic=True)), toy_batch()
    wrapper = build_optim_wrapper(model, model.links, RecipeConfig(epochs=1, optimizer=dict(type="SGD", lr=0.05)))
    assert isinstance(wrapper, JointOptimWrapper)
    link = model.links[0]
    own = {id(p) for p in link.discriminator.parameters()}
    groups = {n: {id(p) for g in w.optimizer.param_groups for p in g["params"]} for n, w in wrapper.items()}
    assert groups["link0"] == own
    assert groups["main"].isdisjoint(own)
    defaults = wrapper["link0"].optimizer.defaults
    assert (type(wrapper["link0"].optimizer).__name__, defaults["lr"], defaults["betas"]) == ("Adam", 4e-4, (0.9, 0.99))

    def moved(*terms: str) -> tuple[bool, bool]:
        """Whether a step on these terms moves (the discriminator, the student)."""
        sides = [*link.discriminator.parameters()], [*model.deploy.parameters()]
        before = [[p.detach().clone() for p in side] for side in sides]
        found = model.loss(batch)
        wrapper.update_params(sum(found[f"skd.loss_{term}"] for term in terms))
        changed = [any(not torch.equal(a, b) for a, b in zip(x, y)) for x, y in zip(before, sides)]
        return changed[0], changed[1]

    # The first: Adam's moments would move a side whose gradient is zero.
    assert moved("adversarial") == (False, True)
    assert moved("discriminator") == (True, False)
    assert moved("adversarial", "discriminator", "pair") == (True, True)
    assert not any("discriminator" in key for key in model.deploy.state_dict())
    assert any("discriminator" in key for key in model.state_dict())  # saved for resume
