"""LiDAR clouds to network inputs: files, arrays and tensors of points, as a card's grid of voxels says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.pointcloud.data.frames import points_fault
from limbeck.pointcloud.voxels import Grid, Voxels, voxelize
from limbeck.zoo.images import SUFFIXES, files_in

if TYPE_CHECKING:
    from limbeck.zoo.card import CloudPreprocessing

CLOUD_SUFFIXES = frozenset({".bin"})
_POINT_BYTES = 16
WANTED = "points of x (forward), y (left), z (up) in metres and reflectance from 0 to 1"


@dataclass(frozen=True)
class CloudPreprocess:
    """Callable from a cloud to the voxels that one detector reads.

    Takes a path to a .bin file of little-endian float32, 4 a point, as KITTI's; or an array or tensor (P, 4).

    Raises: UserError, naming the file where there is one, for what is not a cloud, has a point that is not finite, or
        has no point in the detector's range.
    """

    spec: CloudPreprocessing

    @property
    def grid(self) -> Grid:
        """By which clouds are voxelised."""
        spec = self.spec
        return Grid.of(spec.point_cloud_range, spec.voxel_size, spec.max_points, spec.max_voxels)

    def __call__(self, cloud: Any) -> Voxels:
        return self.voxels([to_points(cloud)])

    def voxels(self, clouds: list[np.ndarray], device: torch.device | str = "cpu") -> Voxels:
        """Several clouds of checked points (P, 4) as one batch."""
        return voxelize([torch.from_numpy(points).to(device) for points in clouds], self.grid)

    def seen(self, points: np.ndarray) -> np.ndarray:
        """Which points (P, 4) lie in the range, bool (P,). Raises: UserError when none does."""
        low, high = (np.array(side) for side in (self.spec.point_cloud_range[:3], self.spec.point_cloud_range[3:]))
        inside = ((points[:, :3] >= low) & (points[:, :3] < high)).all(1)
        if not inside.any():
            raise UserError(
                f"none of the {len(points)} points lies in the range that the detector sees, x {low[0]:g} to "
                f"{high[0]:g}, y {low[1]:g} to {high[1]:g}, z {low[2]:g} to {high[2]:g} m; give {WANTED}"
            )
        return np.asarray(inside)


def to_points(cloud: Any) -> np.ndarray:
    """A cloud as float32 (P, 4).

    Raises: UserError.
    """
    if isinstance(cloud, (str, Path)):
        return read_cloud(Path(cloud))
    if isinstance(cloud, Tensor):
        cloud = cloud.detach().cpu().numpy()
    if not isinstance(cloud, np.ndarray):
        raise UserError(f"a LiDAR cloud is a .bin file, an array or a tensor (P, 4); got {type(cloud).__name__}")
    if cloud.dtype.kind != "f":
        raise UserError(f"a LiDAR cloud is of floats, {WANTED}; got {cloud.dtype}")
    fault = points_fault(cloud)
    if fault:
        raise UserError(f"not a LiDAR cloud: {fault}; give {WANTED}")
    return np.array(cloud, np.float32)  # a copy: what was read from a file cannot be written to, which torch warns of


def read_cloud(path: Path) -> np.ndarray:
    """A file's points, float32 (P, 4).

    Raises: UserError naming the file.
    """
    if path.suffix.lower() in SUFFIXES:
        raise UserError(
            f"{path}: is an image, and this student reads LiDAR clouds; give .bin files of 4 float32 a point"
        )
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file of a LiDAR cloud") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if len(data) % _POINT_BYTES:
        raise UserError(
            f"{path}: has {len(data):,} bytes, not a multiple of {_POINT_BYTES}: it is cut off, or has other columns "
            "than x, y, z and reflectance as float32"
        )
    points = np.frombuffer(data, "<f4").reshape(-1, 4)
    return named(path, lambda: to_points(points))


def named(where: Any, read: Callable[[], Any]) -> Any:
    """What `read` gives; its errors say which cloud they are of, a path or a place in the input."""
    try:
        return read()
    except UserError as error:
        raise UserError(f"{where if isinstance(where, (str, Path)) else f'cloud {where}'}: {error}") from error


def cloud_files(folder: str | Path) -> list[Path]:
    """Files of clouds in a folder and below it, by path.

    Raises: UserError when there is none.
    """
    return files_in(folder, CLOUD_SUFFIXES, "LiDAR cloud")
