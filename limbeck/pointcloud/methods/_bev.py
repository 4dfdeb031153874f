"""Cells of bird's-eye-view maps: which lie in boxes, which hold points."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.pointcloud.targets import Targets3D

Size = tuple[int, int]


def cell_centres(size: Size, point_cloud_range: Sequence[float], device: torch.device | None = None) -> Tensor:
    """x and y in metres of the centre of every cell of a map that covers the range, (H, W, 2) float64.

    >>> cell_centres((1, 2), (0, -1, -3, 4, 1, 1))[0].tolist()
    [[1.0, 0.0], [3.0, 0.0]]
    """
    (low_x, low_y), (high_x, high_y) = point_cloud_range[:2], point_cloud_range[3:5]
    rows, columns = (torch.arange(n, dtype=torch.float64, device=device) + 0.5 for n in size)
    y = low_y + rows * (high_y - low_y) / size[0]
    x = low_x + columns * (high_x - low_x) / size[1]
    return torch.stack([x.expand(size), y[:, None].expand(size)], dim=2)


def cells_in_boxes(
    boxes: Sequence[Tensor], size: Size, point_cloud_range: Sequence[float], *, own_cell: bool = True
) -> Tensor:
    """Which cells of a map have their centre in a box, seen from above.

    Args:
        boxes: one (M, 7) a cloud; see `Targets3D`.
        size: height and width of the map, along y and x.
        own_cell: the cell that holds a box's centre is in it too: else boxes smaller than a cell, such as pedestrians,
            would often have none. ASSUMPTION, not in the official code.
    Returns: (B, H, W) bool.
    """
    found = []
    for own in boxes:
        grid = cell_centres(size, point_cloud_range, own.device)
        own = own.detach().double()
        offset = grid[None] - own[:, None, None, :2]  # (M, H, W, 2)
        cos, sin = own[:, 6].cos()[:, None, None], own[:, 6].sin()[:, None, None]
        along = offset[..., 0] * cos + offset[..., 1] * sin
        across = offset[..., 1] * cos - offset[..., 0] * sin
        inside = (along.abs() <= own[:, 3, None, None] / 2) & (across.abs() <= own[:, 4, None, None] / 2)
        mask = inside.any(0)
        if own_cell:
            _mark(mask, own[:, :2], point_cloud_range)
        found.append(mask)
    return torch.stack(found)


def _mark(mask: Tensor, places: Tensor, point_cloud_range: Sequence[float]) -> None:
    """Set the cells of a map (H, W) that hold places (M, 2), x and y in metres; those out of range are left out."""
    low, high = (places.new_tensor(list(part)) for part in (point_cloud_range[:2], point_cloud_range[3:5]))
    cells = ((places - low) / (high - low) * places.new_tensor([mask.shape[1], mask.shape[0]])).floor().long()
    inside = (cells >= 0).all(1) & (cells[:, 0] < mask.shape[1]) & (cells[:, 1] < mask.shape[0])
    mask[cells[inside, 1], cells[inside, 0]] = True


def occupied_cells(targets: Targets3D, size: Size) -> Tensor:
    """Which cells of a map cover a voxel with points: the voxels' places, brought to the map's size.

    Returns: (B, H, W) bool.
    """
    rows, columns = targets.grid
    cloud, y, x = (targets.coors[:, axis].long() for axis in (0, 2, 3))
    mask = torch.zeros(len(targets), *size, dtype=torch.bool, device=targets.coors.device)
    mask[cloud, y * size[0] // rows, x * size[1] // columns] = True
    return mask
