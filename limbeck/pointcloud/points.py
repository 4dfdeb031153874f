"""Point clouds for detectors that read points: as many of every cloud, held as one voxel a cloud."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import ConfigError
from limbeck.pointcloud.voxels import Grid


@dataclass(frozen=True, slots=True)
class PointGrid(Grid):
    """One voxel over the whole range, which holds `max_points` points of a cloud, drawn as PointRCNN's pipeline does.

    Args:
        far: distance from the sensor in metres from which on every point is kept, before nearer ones are drawn.
    """

    far: float = 40.0

    @classmethod
    def covering(cls, point_cloud_range: Sequence[float], count: int, far: float) -> PointGrid:
        """For `count` points of a range. Raises: ConfigError for a range that is none, or no points."""
        if len(point_cloud_range) != 6:
            raise ConfigError(f"a point_cloud_range has 6 numbers; got {tuple(point_cloud_range)}")
        limits = tuple(float(n) for n in point_cloud_range)
        size = tuple(high - low for low, high in zip(limits[:3], limits[3:]))
        return cls(limits, size, count, (1, 1), far)  # type: ignore[arg-type]  # six and three numbers

    def cut(self, cloud: Tensor, *, training: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The drawn points (1, max_points, F), without any where the range has none.

        All of the far ones, then near ones; where there are too few of these, near ones again. The draw hangs on the
        number of points alone, so that evaluation repeats itself; in training clouds come shuffled.
        """
        low, high = (cloud.new_tensor(side) for side in (self.point_cloud_range[:3], self.point_cloud_range[3:]))
        cloud = cloud[((cloud[:, :3] >= low) & (cloud[:, :3] < high)).all(1)]
        count = min(len(cloud), 1)
        coors = torch.zeros(count, 3, dtype=torch.int32, device=cloud.device)
        if not count:
            return cloud.new_zeros(0, self.max_points, cloud.shape[1]), coors, coors[:, 0]
        dice = torch.Generator().manual_seed(len(cloud))
        cloud = cloud[torch.randperm(len(cloud), generator=dice).to(cloud.device)]
        is_far = cloud[:, :3].norm(dim=1) >= self.far
        far, near = cloud[is_far][: self.max_points], cloud[~is_far]
        missing, source = self.max_points - len(far), near if len(near) else far
        drawn = torch.cat([far, source.repeat(-(-missing // len(source)), 1)[:missing]])
        drawn = drawn[torch.randperm(len(drawn), generator=dice).to(cloud.device)]
        return drawn[None], coors, coors.new_full((1,), min(len(cloud), self.max_points))
