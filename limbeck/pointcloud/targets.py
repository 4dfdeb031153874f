"""What a batch of point clouds is trained on: ground-truth boxes, and the voxels that all members see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from limbeck.errors import ConfigError


@dataclass(slots=True)
class Targets3D:
    """Boxes and voxels of B clouds in the LiDAR frame: x forward, y left, z up, in metres.

    Args:
        boxes: one (M, 7) a cloud: x, y, z of the bottom centre, length, width, height, yaw about z in radians.
        labels: one (M,) int64 a cloud, 0 … K − 1.
        num_points: (n,) points in each non-empty voxel of the batch, after the voxeliser's cap.
        coors: (n, 4) integer, cloud index, z, y, x of each of those voxels; rows are those of the voxel encoder.
        point_cloud_range: x, y, z of the lowest corner, then of the highest one.
        voxel_size: along x, y, z.
    """

    boxes: list[Tensor]
    labels: list[Tensor]
    num_points: Tensor
    coors: Tensor
    point_cloud_range: tuple[float, float, float, float, float, float]
    voxel_size: tuple[float, float, float]

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def grid(self) -> tuple[int, int]:
        """Voxels along y and x."""
        low, high = self.point_cloud_range[:3], self.point_cloud_range[3:]
        return round((high[1] - low[1]) / self.voxel_size[1]), round((high[0] - low[0]) / self.voxel_size[0])


def check_targets(what: str, targets: Any) -> Targets3D:
    """The targets, where they are those of point clouds.

    Raises: ConfigError otherwise.
    """
    if not isinstance(targets, Targets3D):
        raise ConfigError(
            f"{what} reads the voxels and boxes of a batch of point clouds; got targets {type(targets).__name__}: "
            "use a data set for 3D detection"
        )
    return targets
