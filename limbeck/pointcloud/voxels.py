"""Point clouds as voxels: the grid of a detector, and the one voxelisation that its members share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import ConfigError

DESK_RANGE = (0.0, -20.48, -3.0, 40.96, 20.48, 1.0)
DESK_PILLAR = (0.32, 0.32, 4.0)


@dataclass(frozen=True, slots=True)
class Grid:
    """How a detector cuts space into voxels.

    Args:
        point_cloud_range: x, y, z of the lowest corner, then of the highest one, in metres.
        voxel_size: along x, y, z, in metres.
        max_points: that a voxel keeps, the first ones of the cloud.
        max_voxels: that a cloud keeps in training and in evaluation, the first ones of the cloud.
    Raises: ConfigError unless whole voxels fill the range.
    """

    point_cloud_range: tuple[float, float, float, float, float, float]
    voxel_size: tuple[float, float, float]
    max_points: int
    max_voxels: tuple[int, int]

    @classmethod
    def of(
        cls,
        point_cloud_range: Sequence[float],
        voxel_size: Sequence[float],
        max_points: int,
        max_voxels: int | Sequence[int],
    ) -> Grid:
        """From what a config holds; one `max_voxels` serves training and evaluation."""
        most = (max_voxels, max_voxels) if isinstance(max_voxels, int) else tuple(int(n) for n in max_voxels)
        if len(point_cloud_range) != 6 or len(voxel_size) != 3 or len(most) != 2:
            raise ConfigError(
                "a grid has a point_cloud_range of 6 numbers, a voxel_size of 3 and max_voxels of 1 or 2; "
                f"got {tuple(point_cloud_range)}, {tuple(voxel_size)} and {max_voxels}"
            )
        limits: Any = tuple(float(n) for n in point_cloud_range)
        size: Any = tuple(float(n) for n in voxel_size)
        return cls(limits, size, int(max_points), most)

    def __post_init__(self) -> None:
        if min(self.max_points, *self.max_voxels) < 1:
            raise ConfigError(f"max_points and max_voxels are 1 or more; got {self.max_points} and {self.max_voxels}")
        for axis, size, low, high in zip("xyz", self.voxel_size, self.point_cloud_range, self.point_cloud_range[3:]):
            count = (high - low) / size if size > 0 else -1.0
            if count < 0.5 or not math.isclose(count, round(count), abs_tol=1e-3):
                raise ConfigError(
                    f"the range {low} to {high} along {axis} is no whole number of voxels of {size}; change either"
                )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along z, y and x."""
        low, high = self.point_cloud_range[:3], self.point_cloud_range[3:]
        x, y, z = (round((b - a) / size) for a, b, size in zip(low, high, self.voxel_size))
        return z, y, x

    def holds(self, points: Tensor) -> Tensor:
        """Bool (N,): whether x and y of each row (N, 2 or more) lie in the range; z does not matter."""
        low, high = (points.new_tensor(side[:2]) for side in (self.point_cloud_range, self.point_cloud_range[3:]))
        return ((points[:, :2] >= low) & (points[:, :2] < high)).all(1)

    def cut(self, cloud: Tensor, *, training: bool) -> tuple[Tensor, Tensor, Tensor]:
        """One cloud (P, F): voxels (n, max_points, F), their z, y, x (n, 3), and how many points each has (n,)."""
        layer = _layer(self)
        layer.train(training)
        return layer(cloud)


@dataclass(frozen=True, slots=True)
class Voxels:
    """The non-empty voxels of B clouds, one after another, and the clouds: the network input of a voxel detector.

    It has the length and the slices of a batch, so that it can be measured as a tensor is.

    Args:
        voxels: (n, max_points, F) points, 0 where a voxel has fewer.
        num_points: (n,) int, points in each voxel, at most max_points.
        coors: (n, 4) int, cloud, z, y, x of each voxel.
        points: (P, F) of each cloud, as voxelised.
        grid: by which they were made.
        training: whether the training's `max_voxels` was applied.
    """

    voxels: Tensor
    num_points: Tensor
    coors: Tensor
    points: tuple[Tensor, ...]
    grid: Grid
    training: bool = False

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: slice) -> Voxels:
        """Some of the clouds, with their voxels."""
        chosen = range(len(self))[index]
        rows = [(self.coors[:, 0] == cloud).nonzero()[:, 0] for cloud in chosen]
        kept = torch.cat([*rows, self.coors.new_empty(0, dtype=torch.int64)])
        coors = self.coors[kept]
        counts = torch.tensor([len(own) for own in rows], dtype=torch.int64, device=coors.device)
        coors[:, 0] = torch.arange(len(rows), device=coors.device).repeat_interleave(counts)
        points = tuple(self.points[cloud] for cloud in chosen)
        return Voxels(self.voxels[kept], self.num_points[kept], coors, points, self.grid, self.training)

    @property
    def is_cuda(self) -> bool:
        """Whether it lies on a GPU."""
        return self.voxels.is_cuda


@torch.no_grad()
def voxelize(points: Sequence[Tensor], grid: Grid, *, training: bool = False) -> Voxels:
    """Clouds (P, F) as voxels in the order of their first points, by mmdetection3d's hard voxelisation or `grid.cut`.

    Nothing is drawn: the first `max_points` of a voxel and the first `max_voxels` voxels of a cloud stay. Points out of
    range are dropped.
    """
    found = [grid.cut(cloud, training=training) for cloud in points]
    coors = [F.pad(coors, (1, 0), value=cloud) for cloud, (_, coors, _) in enumerate(found)]
    voxels, _, counts = zip(*found, strict=True)
    return Voxels(torch.cat(voxels), torch.cat(counts), torch.cat(coors), tuple(points), grid, training)


@cache
def _layer(grid: Grid) -> Any:
    from mmdet3d.models.data_preprocessors.voxelize import VoxelizationByGridShape

    return VoxelizationByGridShape(
        point_cloud_range=list(grid.point_cloud_range),
        voxel_size=list(grid.voxel_size),
        max_num_points=grid.max_points,
        max_voxels=grid.max_voxels,
    )
