"""Simulated LiDAR scenes as a data set; made when first asked for, nothing to download."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.engine.augment import parse_augment
from limbeck.engine.registry import DATASETS
from limbeck.engine.weights import sha256_json
from limbeck.pointcloud.data.augment import FlipTurnScale
from limbeck.pointcloud.data.base import DESK_RANGE, LidarDataset
from limbeck.pointcloud.data.frames import Frame
from limbeck.pointcloud.data.simulator import SimulatedScenes


@DATASETS.register_module()
class LidarScenes(LidarDataset):
    """Ray-cast scenes of pedestrians, cyclists and cars among clutter, laid out as KITTI's: *simulated*.

    A scene is made when it is first asked for, and then kept. Splits have scenes of their own.

    Args:
        split: 'train', 'val' or 'test'.
        count: how many scenes; 300 / 60 / 200 where not given. More go on where fewer end.
        augment: options of `FlipTurnScale`: `dict(flip=0.5, scale=(0.95, 1.05))`; None for none.
        views: augmented versions of a sample; 0 makes new ones every epoch.
        seed: of the augmentation; the scenes do not depend on it.
        scene_seed: of the scenes: another number makes another data set.
        layouts, root: see `SimulatedScenes`.
        point_cloud_range, gt_sampling, object_noise: see `LidarDataset`.
    Raises: UnknownName, ConfigError; DataMissing and CorruptFile for real layouts.
    """

    name = "lidar-scenes"
    keeps = True

    def __init__(
        self,
        split: str,
        count: int | None = None,
        augment: Mapping[str, Any] | None = None,
        views: int = 1,
        seed: int = 0,
        scene_seed: int = 0,
        layouts: str = "table",
        root: str | None = None,
        point_cloud_range: Sequence[float] = DESK_RANGE,
        gt_sampling: Mapping[str, Any] | None = None,
        object_noise: Mapping[str, Any] | None = None,
    ) -> None:
        transform = parse_augment(FlipTurnScale, augment)
        super().__init__(
            split,
            augment=transform,
            views=views,
            seed=seed,
            point_cloud_range=point_cloud_range,
            gt_sampling=gt_sampling,
            object_noise=object_noise,
        )
        self._scenes = SimulatedScenes(split, seed=scene_seed, count=count, layouts=layouts, root=root)
        self.content_hash = sha256_json({"scenes": self._scenes.content_hash, "range": self.point_cloud_range})

    def frame(self, sample: int) -> Frame:
        return self._scenes[sample]

    def __len__(self) -> int:
        return len(self._scenes)
