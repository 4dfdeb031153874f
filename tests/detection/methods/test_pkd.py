"""PKD against numpy's correlation, what it is blind to, constant channels, other sizes, and its bridges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.detection.methods._channel_statistics import aligned, channel_statistics
from limbeck.detection.methods.pkd import BRIDGED, PKD, pkd_loss
from limbeck.errors import ShapeMismatch, UnknownName
from tests.vision.methods import conftest as common


def example(*shape: int, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    return common.randn(*shape, seed=0, scale=scale), common.randn(*shape, seed=1, scale=scale)


def correlations(student: np.ndarray, teacher: np.ndarray) -> list[float]:
    return [float(np.corrcoef(student[:, c].ravel(), teacher[:, c].ravel())[0, 1]) for c in range(student.shape[1])]


def reference(student: np.ndarray, teacher: np.ndarray) -> float:
    n = student[:, 0].size
    return (n - 1) / n * (1 - float(np.mean(correlations(student, teacher))))


def test_value_and_gradient_are_those_of_numpys_correlation() -> None:
    common.check_reference(pkd_loss, reference, *example(2, 3, 3, 4))


def test_statistics_are_numpys_over_batch_and_positions() -> None:
    x, _ = example(2, 3, 4, 5)
    mean, std = channel_statistics(x)
    rows = np.moveaxis(common.array(x), 1, 0).reshape(3, -1)
    np.testing.assert_allclose(mean.flatten().numpy(), rows.mean(1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(std.flatten().numpy(), rows.std(1, ddof=1), rtol=1e-5)
    assert mean.shape == std.shape == (1, 3, 1, 1)


def test_alignment_gives_the_teachers_statistics() -> None:
    student, teacher = example(2, 3, 4, 5)
    found = channel_statistics(aligned(student * 7 + 2, teacher))
    torch.testing.assert_close(found, channel_statistics(teacher), rtol=1e-4, atol=1e-5)


def test_equal_maps_cost_nothing_and_opposite_ones_twice() -> None:
    _, teacher = example(2, 3, 4, 5)
    assert pkd_loss(teacher.clone(), teacher).item() == 0.0
    assert pkd_loss(-teacher, teacher).item() == pytest.approx(2 * 39 / 40, rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_value_lies_between_zero_and_two(seed: int) -> None:
    student, teacher = common.randn(2, 4, 2, 3, seed=seed), common.randn(2, 4, 2, 3, seed=seed + 50)
    assert 0.0 <= pkd_loss(student, teacher).item() <= 2.0


@pytest.mark.parametrize("side", [0, 1])
def test_positive_factor_and_shift_of_a_channel_are_free_and_a_negative_factor_is_not(side: int) -> None:
    maps = list(example(2, 3, 4, 5))
    expected = pkd_loss(*maps)
    factor, shift = torch.tensor([0.2, 3.0, 11.0]).view(1, 3, 1, 1), torch.tensor([5.0, -40.0, 0.3]).view(1, 3, 1, 1)
    changed = list(maps)
    changed[side] = maps[side] * factor + shift
    torch.testing.assert_close(pkd_loss(*changed), expected, rtol=1e-4, atol=1e-5)
    changed[side] = maps[side] * -factor + shift
    # 1 − r becomes 1 + r in every channel.
    assert (pkd_loss(*changed) + expected).item() == pytest.approx(2 * 39 / 40, rel=1e-4)


def test_gradient_is_orthogonal_to_constants_and_to_the_standardised_map() -> None:
    student, teacher = example(2, 3, 4, 5)
    gradient = common.gradient_of(pkd_loss, student, teacher)
    mean, std = channel_statistics(student)
    size = gradient.abs().amax()
    for direction in (torch.ones_like(student), (student - mean) / std):
        along = (gradient * direction).sum((0, 2, 3))
        torch.testing.assert_close(along, torch.zeros(3), rtol=0, atol=1e-4 * size.item() * 40)
    common.check_one_sided(pkd_loss, student, teacher)


@pytest.mark.parametrize("constant", [0.0, 0.1, -7.3])
def test_constant_channel_is_zero_after_standardising(constant: float) -> None:
    student, teacher = example(2, 3, 4, 5)
    rest = [0, 2]
    student[:, 1] = constant
    n = 40
    alone = pkd_loss(student[:, rest], teacher[:, rest]).item() * 2 / 3
    assert pkd_loss(student, teacher).item() == pytest.approx(alone + (n - 1) / (2 * n * 3), rel=1e-3)
    assert common.gradient_of(pkd_loss, student, teacher).isfinite().all()


def test_one_value_a_channel_costs_nothing() -> None:
    student, teacher = example(1, 3, 1, 1)
    assert pkd_loss(student, teacher).item() == 0.0
    assert common.gradient_of(pkd_loss, student, teacher).isfinite().all()


@pytest.mark.parametrize("resized", ["student", "teacher"])
@pytest.mark.parametrize("size", [(3, 5), (8, 4), (4, 8)])
def test_other_sizes_are_brought_together_on_either_side(resized: str, size: tuple[int, int]) -> None:
    student, teacher = common.randn(2, 3, *size, seed=0), common.randn(2, 3, 4, 5, seed=1)
    found = pkd_loss(student, teacher, resized=resized)
    target = (4, 5) if resized == "student" else size
    parts = [
        torch.nn.functional.interpolate(x, target, mode="bilinear", align_corners=False) for x in (student, teacher)
    ]
    assert found.item() == pytest.approx(reference(*(common.array(x) for x in parts)), rel=1e-4)
    assert 0.0 < found.item() <= 2.0
    common.check_one_sided(lambda s, t: pkd_loss(s, t, resized=resized), student, teacher)


@pytest.mark.parametrize("dtype", common.HALVES)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    common.check_half(pkd_loss, *example(2, 3, 4, 5), dtype)


@pytest.mark.parametrize(
    ("student", "teacher"), [((2, 3, 4, 5), (2, 4, 4, 5)), ((2, 3, 4, 5), (1, 3, 4, 5)), ((2, 3), (2, 3))]
)
def test_maps_that_do_not_fit_are_named(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    with pytest.raises(ShapeMismatch, match="PKD"):
        pkd_loss(torch.zeros(student), torch.zeros(teacher))


# --- the link ---


def test_link_adds_levels_of_any_size() -> None:
    shapes = [(2, 3, 8, 6), (2, 3, 4, 3), (2, 3, 2, 2)]
    link = PKD(taps=[(f"neck[{i}]", f"neck[{i}]") for i in range(3)])
    link.connect(shapes, shapes)
    student = [common.randn(*s, seed=i).requires_grad_() for i, s in enumerate(shapes)]
    teacher = [common.randn(*s, seed=9 + i) for i, s in enumerate(shapes)]
    terms = link(common.link_inputs(student, teacher))
    expected = sum(reference(common.array(s), common.array(t)) for s, t in zip(student, teacher))
    assert {name: value.item() for name, value in terms.items()} == {"feature": pytest.approx(expected, rel=1e-4)}
    assert not list(link.parameters())
    assert link.assumption == ""
    terms["feature"].backward()
    assert all(s.grad is not None and s.grad.abs().max() > 0 for s in student)


def test_link_pairs_levels_of_other_strides_in_the_order_of_the_taps() -> None:
    link = PKD(taps=[("neck[0]", "neck[1]")], resized="teacher")
    link.connect([(2, 3, 8, 6)], [(2, 3, 4, 3)])
    student, teacher = common.randn(2, 3, 4, 3), common.randn(2, 3, 8, 6, seed=1)
    found = link(common.link_inputs(student, teacher))["feature"]
    torch.testing.assert_close(found, pkd_loss(student, teacher, resized="teacher"))


def test_other_widths_get_a_bridge_that_is_trained() -> None:
    torch.manual_seed(0)
    link = PKD(taps=[("neck[0]", "neck[0]"), ("neck[1]", "neck[1]")])
    link.connect([(2, 6, 4, 3), (2, 6, 2, 2)], [(2, 5, 4, 3), (2, 6, 2, 2)])
    bridge, same = link.bridges
    assert [tuple(p.shape) for p in link.parameters()] == [(6, 5, 1, 1)]
    assert (link.assumption, PKD.assumption) == (BRIDGED, "")
    student = [common.randn(2, 5, 4, 3).requires_grad_(), common.randn(2, 6, 2, 2).requires_grad_()]
    teacher = [common.randn(2, 6, 4, 3, seed=2), common.randn(2, 6, 2, 2, seed=3)]
    found = link(common.link_inputs(student, teacher))["feature"]
    torch.testing.assert_close(found, pkd_loss(bridge(student[0]), teacher[0]) + pkd_loss(same(student[1]), teacher[1]))
    found.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in (*link.parameters(), *student))
    with pytest.raises(ShapeMismatch, match="PKD"):
        link.connect([(2, 6)], [(2, 6)])


def test_registry_builds_it_and_refuses_typos() -> None:
    common.check_registered("PKD", PKD, weight=10.0, typo="resize", meant="resized", resized="teacher")
    assert PKD().taps == [(f"neck[{i}]", f"neck[{i}]") for i in range(4)]
    with pytest.raises(UnknownName, match="'both'"):
        PKD(resized="both")
