"""KITTI's 3D objects as a data set: the whole of it, or a folder of some frames in its layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from limbeck.engine.augment import parse_augment
from limbeck.engine.data import check_limit
from limbeck.engine.data_files import find_folder, usual_folders
from limbeck.engine.registry import DATASETS
from limbeck.engine.weights import sha256_file, sha256_json
from limbeck.errors import ConfigError
from limbeck.pointcloud.data.augment import FlipTurnScale
from limbeck.pointcloud.data.base import DESK_RANGE, KITTI_RANGE, LidarDataset
from limbeck.pointcloud.data.frames import Frame
from limbeck.pointcloud.data.kitti import LAYOUT, KittiFolder


class _KittiDataset(LidarDataset):
    """Frames of a folder in KITTI's layout: test is the official val, of whose frames the papers' figures are.

    The last `val_size` of the official train are val, the others train. The content hash is of every id, label and
    calibration and of the size of every cloud; no cloud is read before it is asked for.

    Args:
        split: 'train', 'val' or 'test'.
        root: the folder; None looks in $LIMBECK_DATA and in the cache folder.
        augment: options of `FlipTurnScale`; None for none.
        views, seed: see ViewDataset.
        limit: takes the first frames only.
        val_size: how many of the official train are val.
        gt_sampling, object_noise: see `LidarDataset`.
        whole: every labelled frame is test: for detectors that were trained on none of them.
        point_cloud_range: see `LidarDataset`; None takes the usual one.
    Raises: DataMissing, CorruptFile, ConfigError, UnknownName.
    """

    folder: ClassVar[str]
    default_val_size: ClassVar[int]
    default_range: ClassVar[tuple[float, ...]]

    def __init__(
        self,
        split: str,
        root: str | None = None,
        augment: Mapping[str, Any] | None = None,
        views: int = 0,
        seed: int = 0,
        limit: int | None = None,
        val_size: int | None = None,
        whole: bool = False,
        gt_sampling: Mapping[str, Any] | None = None,
        object_noise: Mapping[str, Any] | None = None,
        point_cloud_range: Sequence[float] | None = None,
    ) -> None:
        transform = parse_augment(FlipTurnScale, augment)
        extent = self.default_range if point_cloud_range is None else point_cloud_range
        super().__init__(
            split,
            augment=transform,
            views=views,
            seed=seed,
            point_cloud_range=extent,
            gt_sampling=gt_sampling,
            object_noise=object_noise,
        )
        advice = f"put it into $LIMBECK_DATA/{self.folder} or set root; it has {LAYOUT}"
        wanted = ["training/calib", "training/label_2", "ImageSets/train.txt", "ImageSets/val.txt"]
        self.root = find_folder(self.name, usual_folders(self.folder, root), wanted, advice)
        self._folder = KittiFolder(self.root)
        if whole and split != "test":
            raise ConfigError(f"whole=True of {self.name} makes every frame test; split is {split!r}")
        self.frame_ids = self._chosen(limit, self.default_val_size if val_size is None else val_size, whole)
        self.content_hash = sha256_json(
            {"split": split, "range": self.point_cloud_range, "frames": [self._facts(one) for one in self.frame_ids]}
        )

    def _chosen(self, limit: int | None, val_size: int, whole: bool) -> list[str]:
        found = self._folder.ids("val" if self.split == "test" else "train")
        found = sorted({*found, *self._folder.ids("train")}) if whole else found
        if self.split != "test":
            cut = len(found) - val_size
            if not 0 < cut < len(found):
                raise ConfigError(
                    f"val_size of {self.name} is at least 1 and leaves some of its {len(found)} training frames; "
                    f"got {val_size}"
                )
            found = found[cut:] if self.split == "val" else found[:cut]
        return found[: check_limit(limit, len(found), self.name)]

    def _facts(self, frame: str) -> list[Any]:
        training = self.root / "training"
        texts = [_sha256(training / name / f"{frame}.txt") for name in ("label_2", "calib")]
        sizes = [_size(training / name / f"{frame}.bin") for name in ("velodyne_reduced", "velodyne")]
        return [frame, *texts, next((size for size in sizes if size is not None), None)]

    def frame(self, sample: int) -> Frame:
        return self._folder.frame(self.frame_ids[sample])

    def __len__(self) -> int:
        return len(self.frame_ids)


def _sha256(path: Path) -> str | None:
    return sha256_file(path) if path.is_file() else None


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


@DATASETS.register_module()
class KITTI(_KittiDataset):
    """KITTI's 3D objects (Geiger et al. 2012): 3,212 frames to train, 500 of its train as val, 3,769 as test."""

    name = "kitti"
    folder = "kitti"
    default_val_size = 500
    default_range = KITTI_RANGE


@DATASETS.register_module()
class KITTIFrames(_KittiDataset):
    """25 real frames of KITTI: 10 to train, 3 as val, 12 to test, or all to test; too few to rank methods by."""

    name = "kitti-frames"
    folder = "kitti_frames"
    default_val_size = 3
    default_range = DESK_RANGE
    keeps = True
