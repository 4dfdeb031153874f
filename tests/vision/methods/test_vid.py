"""VID: the Gaussian likelihood against a naive loop, its best variance, and what is trained."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.vision.methods.vid import VID, MeanNetwork, vid_loss
from tests.vision.methods import conftest as common
from tests.vision.methods.test_rkd import distilled, images

VARIANCE = torch.tensor([0.3, 1.0, 4.0])


def reference(mean: np.ndarray, teacher: np.ndarray, variance: np.ndarray) -> float:
    total = 0.0
    for b, c, y, x in np.ndindex(*mean.shape):
        r = mean[b, c, y, x] - teacher[b, c, y, x]
        total += 0.5 * (r * r / variance[c] + math.log(variance[c]))
    return total / mean.size


def connected(teacher: tuple[int, ...], student: tuple[int, ...], **kwargs) -> VID:
    torch.manual_seed(0)
    link = METHODS.make({"type": "VID", "taps": [["a", "a"]], **kwargs})
    link.connect([teacher], [student])
    return link


def make_identity(network: nn.Module) -> None:
    """Pass a map without negatives through the three convolutions."""
    for conv in network:
        if isinstance(conv, nn.Conv2d):
            nn.init.dirac_(conv.weight)


def test_value_and_gradient_match_naive_reference() -> None:
    common.check_reference(
        lambda s, t: vid_loss(s, t, VARIANCE),
        lambda s, t: reference(s, t, common.array(VARIANCE)),
        common.randn(2, 3, 4, 2, seed=0, scale=2),
        common.randn(2, 3, 4, 2, seed=1, scale=2),
    )


def test_gradient_of_the_variance_matches_naive_reference() -> None:
    mean, teacher = common.randn(2, 3, 4, 2, seed=0), common.randn(2, 3, 4, 2, seed=1)
    leaf = VARIANCE.clone().requires_grad_()
    vid_loss(mean, teacher, leaf).backward()
    slope = common.numeric_gradient(
        lambda v: reference(common.array(mean), common.array(teacher), v), common.array(VARIANCE)
    )
    assert leaf.grad is not None
    np.testing.assert_allclose(leaf.grad.double().numpy(), slope, rtol=1e-4)


def test_an_exact_prediction_costs_half_the_log_of_the_initial_variance_a_stage() -> None:
    torch.manual_seed(0)
    link = VID(taps=[["a", "a"], ["b", "b"], ["c", "c"]])
    maps = [common.randn(2, c, n, n, seed=c).relu() for c, n in ((3, 8), (4, 4), (5, 2))]
    link.connect([tuple(m.shape) for m in maps], [tuple(m.shape) for m in maps])
    for network in link.networks:
        make_identity(network)
    assert link(common.link_inputs(maps, maps))["information"].item() == pytest.approx(3 * 0.5 * math.log(5), rel=1e-6)


@pytest.mark.parametrize("residual", [0.2, 1.0, 3.0])
def test_best_variance_is_the_squared_residual(residual: float) -> None:
    teacher = common.randn(2, 1, 4, 4)
    best = vid_loss(teacher + residual, teacher, torch.tensor([residual**2]))
    assert best.item() == pytest.approx(0.5 + math.log(residual), rel=1e-4, abs=1e-6)
    for factor in (0.8, 0.95, 1.05, 1.25):
        assert vid_loss(teacher + residual, teacher, torch.tensor([factor * residual**2])) > best


def test_optimiser_finds_the_best_variance_by_channel() -> None:
    link = connected((8, 2, 4, 4), (8, 2, 4, 4))
    make_identity(link.networks[0])
    student = common.randn(8, 2, 4, 4).relu()
    teacher = student + torch.tensor([0.5, 2.0]).view(1, 2, 1, 1)
    optimiser = torch.optim.Adam(link.alphas.parameters(), lr=0.1)
    for _ in range(300):
        optimiser.zero_grad()
        link(common.link_inputs(student, teacher))["information"].backward()
        optimiser.step()
    torch.testing.assert_close(link.variances()[0].detach(), torch.tensor([0.25, 4.0]), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("variance", [0.01, 1.0, 5.0, 800.0])
def test_variance_starts_where_it_is_told(variance: float) -> None:
    link = connected((2, 3, 4, 4), (2, 2, 4, 4), initial_variance=variance)
    torch.testing.assert_close(link.variances()[0].detach(), torch.full((3,), variance), rtol=1e-4, atol=0)
    assert link.alphas[0].shape == (3,)


def test_a_sharp_prediction_makes_the_loss_negative() -> None:
    teacher = common.randn(2, 3, 4, 4)
    assert vid_loss(teacher, teacher, torch.full((3,), 0.1)).item() == pytest.approx(0.5 * math.log(0.1), rel=1e-6)


def test_mean_network_has_three_convolutions_without_bias() -> None:
    network = MeanNetwork(4, 6)
    assert [p.shape for p in network.parameters()] == [(6, 4, 1, 1), (6, 6, 1, 1), (6, 6, 1, 1)]
    assert [type(m).__name__ for m in network] == ["Conv2d", "ReLU", "Conv2d", "ReLU", "Conv2d"]
    # Positions do not mix.
    x = common.randn(2, 4, 3, 3)
    torch.testing.assert_close(network(x.flip(3)), network(x).flip(3))


@pytest.mark.parametrize(("student", "teacher"), [(8, 4), (4, 8), (6, 4), (4, 4)])
def test_larger_map_is_pooled_before_the_network(student: int, teacher: int) -> None:
    link = connected((2, 5, teacher, teacher), (2, 3, student, student))
    s, t = common.randn(2, 3, student, student, seed=0), common.randn(2, 5, teacher, teacher, seed=1)
    found = link(common.link_inputs(s, t))["information"]
    side = min(student, teacher)
    pool = nn.AdaptiveAvgPool2d(side)
    torch.testing.assert_close(found, vid_loss(link.networks[0](pool(s)), pool(t), link.variances()[0]))


def test_gradient_reaches_student_network_and_variances_and_not_the_teacher() -> None:
    link = connected((2, 5, 4, 4), (2, 3, 4, 4))
    student = common.randn(2, 3, 4, 4).requires_grad_()
    teacher = common.randn(2, 5, 4, 4, seed=1).requires_grad_()
    link(common.link_inputs(student, teacher))["information"].backward()
    assert teacher.grad is None
    for leaf in (student, *link.parameters()):
        assert leaf.grad is not None
        assert leaf.grad.abs().max() > 0
    assert len(list(link.parameters())) == 4


def test_repeated_batch_and_joint_order_change_nothing() -> None:
    link = connected((3, 5, 4, 4), (3, 4, 4, 4))
    s, t = common.randn(3, 4, 4, 4, seed=0), common.randn(3, 5, 4, 4, seed=1)
    expected = link(common.link_inputs(s, t))["information"]
    for rows in ([0, 1, 2, 0, 1, 2], [2, 0, 1]):
        torch.testing.assert_close(link(common.link_inputs(s[rows], t[rows]))["information"], expected)


@pytest.mark.parametrize("dtype", common.HALVES)
def test_autocast_keeps_float32_inside(dtype: torch.dtype) -> None:
    def loss(s: Tensor, t: Tensor) -> Tensor:
        return vid_loss(s, t, VARIANCE)

    common.check_half(loss, common.randn(2, 3, 4, 4, scale=300), common.randn(2, 3, 4, 4, seed=1, scale=300), dtype)


@pytest.mark.parametrize("dtype", common.HALVES)
def test_link_takes_half_precision_taps(dtype: torch.dtype) -> None:
    link = connected((2, 5, 4, 4), (2, 3, 8, 8))
    s, t = common.randn(2, 3, 8, 8, seed=0).to(dtype), common.randn(2, 5, 4, 4, seed=1).to(dtype)
    expected = link(common.link_inputs(s.float(), t.float()))["information"]
    torch.testing.assert_close(link(common.link_inputs(s, t))["information"], expected)


@pytest.mark.parametrize(
    ("teacher", "student", "hint"),
    [
        ((2, 6, 8, 8), (3, 4, 8, 8), "of one batch"),
        ((2, 6), (2, 4, 8, 8), r"maps \(B, C, H, W\)"),
        ((2, 6), (2, 4), r"maps \(B, C, H, W\)"),
    ],
)
def test_taps_that_are_no_maps_are_named(teacher: tuple[int, ...], student: tuple[int, ...], hint: str) -> None:
    with pytest.raises(ShapeMismatch, match=hint) as error:
        connected(teacher, student)
    assert str(teacher) in str(error.value)
    assert str(student) in str(error.value)


@pytest.mark.parametrize(
    ("mean", "variance"), [((2, 3, 4, 2), 3), ((2, 3, 4, 4), 4), ((2, 4, 4, 4), 3), ((2, 1, 4, 4), 1)]
)
def test_loss_refuses_shapes_that_would_broadcast(mean: tuple[int, ...], variance: int) -> None:
    with pytest.raises(ShapeMismatch, match=r"teacher map \(2, 3, 4, 4\) and variance"):
        vid_loss(torch.zeros(mean), torch.zeros(2, 3, 4, 4), torch.ones(variance))


def test_registry_builds_it_and_refuses_typos() -> None:
    common.check_registered(
        "VID", VID, weight=1.0, typo="inital_variance", meant="initial_variance", initial_variance=2.0
    )
    assert VID().taps == [(f"layer{i}", f"layer{i}") for i in (1, 2, 3)]


@pytest.mark.parametrize("value", [0.0, 1e-5, -1.0, math.inf, math.nan])
def test_a_variance_without_logarithm_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="VID needs a finite initial_variance"):
        VID(initial_variance=value)


def test_the_runs_optimiser_trains_variances_too() -> None:
    model = distilled(dict(type="VID"), task_weight=0.0)
    link = model.links[0]
    before = [alpha.detach().clone() for alpha in link.alphas]
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    terms = model.loss(images())
    assert set(terms) == {"student.loss_ce", "vid.loss_information"}
    sum(terms.values()).backward()
    optimiser.step()
    assert all(bool((a != b).all()) for a, b in zip(link.alphas, before))
    assert all(p.grad is None for p in model.frozen["teacher"].parameters())
    assert model.deploy.layer1[0].conv1.weight.grad.abs().max() > 0
