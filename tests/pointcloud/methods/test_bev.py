"""Masks of bird's-eye-view maps against brute force; BEVMimic; CWD, PKD and FitNet on the neck by name."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName
from limbeck.pointcloud.methods._bev import cells_in_boxes, occupied_cells
from limbeck.pointcloud.methods.bev_mimic import BEVMimic, masked_hint
from tests.pointcloud.methods.clouds import RANGE, step, targets, voxels
from tests.vision.methods import conftest as common

SHAPES = (2, 6, 16, 16), (2, 4, 16, 16)  # of the neck: cells of 1 m


def boxes(*rows: tuple[float, float, float, float, float]) -> Tensor:
    """x, y, length, width and yaw of boxes on the ground."""
    return torch.tensor([[x, y, -1.6, length, width, 1.5, yaw] for x, y, length, width, yaw in rows]).reshape(-1, 7)


def brute_force(own: Tensor, size: tuple[int, int], *, own_cell: bool) -> np.ndarray:
    """Cell by cell: its centre lies left of all four edges of a box's corners, walked round counter-clockwise."""
    found = np.zeros(size, dtype=bool)
    sx, sy = (RANGE[3] - RANGE[0]) / size[1], (RANGE[4] - RANGE[1]) / size[0]
    for x, y, _, length, width, _, yaw in own.tolist():
        ax, ay = math.cos(yaw), math.sin(yaw)
        ends = [(1, 1), (-1, 1), (-1, -1), (1, -1)]
        corners = [
            (x + a * length / 2 * ax - b * width / 2 * ay, y + a * length / 2 * ay + b * width / 2 * ax)
            for a, b in ends
        ]
        for row in range(size[0]):
            for column in range(size[1]):
                px, py = RANGE[0] + (column + 0.5) * sx, RANGE[1] + (row + 0.5) * sy
                sides = [
                    (x2 - x1) * (py - y1) - (y2 - y1) * (px - x1)
                    for (x1, y1), (x2, y2) in zip(corners, corners[1:] + corners[:1], strict=True)
                ]
                found[row, column] |= min(sides) >= 0
        row, column = math.floor((y - RANGE[1]) / sy), math.floor((x - RANGE[0]) / sx)
        if own_cell and 0 <= row < size[0] and 0 <= column < size[1]:
            found[row, column] = True
    return found


@pytest.mark.parametrize("own_cell", [True, False])
@pytest.mark.parametrize("size", [(16, 16), (32, 8)])
def test_cells_in_boxes_are_those_of_brute_force(size: tuple[int, int], own_cell: bool) -> None:
    clouds = [
        boxes((5, 1, 3.9, 1.6, 0.3), (10, -4, 4.2, 1.7, 2.6), (3.3, -6.2, 0.8, 0.6, 1.0), (15.9, 7.9, 4, 2, -0.7)),
        boxes(),
        boxes((-1.5, 0, 3.9, 1.6, 0.1), (40, 3, 2, 2, 0)),  # half out of range, and far out
    ]
    found = cells_in_boxes(clouds, size, RANGE, own_cell=own_cell)
    assert found.shape == (3, *size)
    for mask, own in zip(found, clouds, strict=True):
        np.testing.assert_array_equal(mask.numpy(), brute_force(own, size, own_cell=own_cell))
    assert found[0].any()
    assert not found[1].any()


def test_pedestrian_between_cell_centres_keeps_its_own_cell() -> None:
    own = [boxes((5.0, 1.0, 0.8, 0.6, 0.0))]
    assert cells_in_boxes(own, (16, 16), RANGE).sum() == 1
    assert cells_in_boxes(own, (16, 16), RANGE, own_cell=False).sum() == 0


@pytest.mark.parametrize("size", [(32, 32), (16, 16), (8, 4), (64, 64)])
def test_occupied_cells_are_those_over_a_voxel(size: tuple[int, int]) -> None:
    coors, counts = voxels((30, 0, 9))
    found = occupied_cells(targets(coors, counts, clouds=3), size)
    expected = np.zeros((3, *size), dtype=bool)
    for cloud, _, y, x in coors.tolist():
        expected[cloud, y * size[0] // 32, x * size[1] // 32] = True
    np.testing.assert_array_equal(found.numpy(), expected)


def example() -> Any:
    coors, counts = voxels((30, 9))
    given = targets(coors, counts, [boxes((5, 1, 3.9, 1.6, 0.3)), boxes()])
    return step([common.randn(*SHAPES[1]).requires_grad_()], [common.randn(*SHAPES[0], seed=1).requires_grad_()], given)


def linked(**options: Any) -> BEVMimic:
    torch.manual_seed(0)
    link = BEVMimic(**options)
    link.connect([SHAPES[0]], [SHAPES[1]])
    return link


@pytest.mark.parametrize("mask", ["all", "nonempty", "boxes"])
def test_hint_is_the_mean_over_the_cells_of_the_mask(mask: str) -> None:
    link, batch = linked(mask=mask), example()
    conv = link.bridges[0][0]  # type: ignore[index]
    weight, bias = common.array(conv.weight)[:, :, 0, 0], common.array(conv.bias)
    mine = np.einsum("oc,bchw->bohw", weight, common.array(batch.student[0])) + bias[:, None, None]
    error = ((mine - common.array(batch.teacher[0])) ** 2).mean(1)
    where = {
        "all": np.ones((2, 16, 16), dtype=bool),
        "nonempty": occupied_cells(batch.targets, (16, 16)).numpy(),
        "boxes": cells_in_boxes(batch.targets.boxes, (16, 16), RANGE).numpy(),
    }[mask]
    loss = link(batch)["hint"]
    assert loss.item() == pytest.approx(error[where].mean(), rel=1e-5)
    loss.backward()
    assert batch.teacher[0].grad is None
    reached = batch.student[0].grad.abs().amax(1) > 0
    np.testing.assert_array_equal(reached.numpy(), where)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in link.parameters())


def test_batch_without_boxes_is_zero_with_a_graph() -> None:
    link, batch = linked(mask="boxes"), example()
    batch.targets.boxes = [boxes(), boxes()]
    loss = link(batch)["hint"]
    assert loss.item() == 0.0
    assert link.may_be_zero
    loss.backward()
    assert batch.student[0].grad.isfinite().all()
    batch.targets.boxes = [boxes((5, 1, 3.9, 1.6, 0.3)), boxes()]
    link(batch)
    assert not link.may_be_zero


def test_equal_maps_cost_nothing_and_halves_are_computed_in_float32() -> None:
    student, teacher = common.randn(2, 3, 4, 5), common.randn(2, 3, 4, 5, seed=1)
    mask = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(0)) > 0.5
    assert masked_hint(student, student, mask).item() == 0.0
    common.check_one_sided(lambda s, t: masked_hint(s, t, mask), student, teacher)
    for dtype in common.HALVES:
        common.check_half(lambda s, t: masked_hint(s, t, mask), student, teacher, dtype)


def test_registry_and_errors() -> None:
    common.check_registered("BEVMimic", BEVMimic, weight=1.0, typo="masks", meant="mask", mask="boxes")
    assert BEVMimic().taps == [("neck[0]", "neck[0]")]
    assert (BEVMimic().assumption, "'boxes'" in BEVMimic(mask="boxes").assumption) == ("", True)
    with pytest.raises(UnknownName, match="'empty'"):
        BEVMimic(mask="empty")
    with pytest.raises(ShapeMismatch, match="same stride"):
        BEVMimic().connect([(2, 6, 16, 16)], [(2, 4, 8, 8)])
    batch = example()
    batch.targets = None
    with pytest.raises(ConfigError, match="3D detection"):
        linked(mask="nonempty")(batch)


@pytest.mark.parametrize(("name", "options"), [("CWD", {}), ("PKD", {}), ("FitNet", dict(bridge=dict(norm_act=False)))])
def test_methods_of_other_packages_take_the_necks_map(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    link = METHODS.make({"type": name, "taps": [["neck[0]", "neck[0]"]], **options})
    link.connect([SHAPES[0]], [SHAPES[1]])
    batch = example()
    (loss,) = link(batch).values()
    loss.backward()
    assert loss.item() > 0
    assert batch.student[0].grad.abs().max() > 0
    assert batch.teacher[0].grad is None
