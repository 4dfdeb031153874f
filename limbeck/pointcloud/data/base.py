"""The base of data sets of LiDAR frames: whole batches of clouds of any size, with boxes and the metric's truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.engine.augment import parse_augment
from limbeck.engine.data import ViewDataset
from limbeck.errors import ConfigError
from limbeck.pointcloud.data.augment import FlipTurnScale, in_range
from limbeck.pointcloud.data.frames import CLASSES, PALETTE, Frame
from limbeck.pointcloud.data.gt_sampling import GTSampling, ObjectBank, ObjectNoise
from limbeck.pointcloud.metrics import truth_tensors

DESK_RANGE = (0.0, -20.48, -3.0, 40.96, 20.48, 1.0)
KITTI_RANGE = (0.0, -39.68, -3.0, 69.12, 39.68, 1.0)
_UNCOUNTED = 3  # KITTI's occlusion "unknown": the metric ignores such a box, found or not


@lru_cache(maxsize=6)  # train, val and test of two benchmarks; the runs of a suite share them
def _kept_frames(content_hash: str) -> dict[int, Frame]:
    return {}


@lru_cache(maxsize=2)  # teacher and students of one suite sample the same objects
def _kept_banks(content_hash: str) -> dict[str, ObjectBank]:
    return {}


class LidarDataset(ViewDataset):
    """A split of LiDAR frames; subclasses implement `frame` and `__len__`.

    A batch has `inputs`, a list of float32 (P, 4), and `data_samples` with lists of boxes float32 (M, 7) and labels
    int64 (M,) of the three classes, ids and views; where nothing is augmented also `truth`, what `truth_tensors` gives
    of the frames as labelled. Points are shuffled with each augmentation, since voxels keep the first ones.

    Args:
        split: 'train', 'val' or 'test'.
        augment: `FlipTurnScale` or None; its random numbers depend on seed, view and sample id alone.
        gt_sampling, object_noise: options of `GTSampling` and `ObjectNoise`, which come before `augment` and need it;
            None for none. The former reads every frame of the split before the first epoch.
        views, seed: see ViewDataset.
        point_cloud_range: of the detectors: objects whose centre is out of it along x or y are not counted by the
            metric. Their points stay.

    Attributes:
        palette: one RGB colour a class.
        keeps: hold every frame in memory once it was asked for, for all data sets of this content in the process.
    """

    classes = list(CLASSES)
    palette = list(PALETTE)
    keeps = False

    def __init__(
        self,
        split: str,
        *,
        augment: FlipTurnScale | None,
        views: int,
        seed: int,
        point_cloud_range: Sequence[float],
        gt_sampling: Mapping[str, Any] | None = None,
        object_noise: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(split, views=views, seed=seed, augment=augment)
        self.gt_sampling = parse_augment(GTSampling, gt_sampling)
        self.object_noise = parse_augment(ObjectNoise, object_noise)
        if augment is None and (self.gt_sampling or self.object_noise):
            raise ConfigError(
                f"gt_sampling and object_noise of {self.name} belong to augmentation; set augment as well"
            )
        if seed < 0:
            raise ConfigError(f"seed of {self.name}'s augmentation is 0 or more; got {seed}")
        self.point_cloud_range = tuple(float(n) for n in point_cloud_range)
        in_range(np.zeros((0, 3)), np.zeros((0, 7)), self.point_cloud_range)  # or it says what is wrong

    def frame(self, sample: int) -> Frame:
        """A sample as it is labelled."""
        raise NotImplementedError

    def stored(self, sample: int) -> Frame:
        """A sample before augmentation; what is out of range does not count."""
        kept = _kept_frames(self.content_hash) if self.keeps else {}
        if sample not in kept:
            whole = self.frame(sample)
            _, inside = in_range(whole.points[:0], whole.boxes, self.point_cloud_range)
            kept[sample] = replace(whole, occluded=np.where(inside, whole.occluded, _UNCOUNTED))
        return kept[sample]

    def pipeline(self) -> dict[str, Any]:
        """Everything that decides the points."""
        own = {"gt_sampling": self.gt_sampling, "object_noise": self.object_noise}
        used = {name: asdict(options) for name, options in own.items() if options is not None}
        return super().pipeline() | {"point_cloud_range": list(self.point_cloud_range)} | used

    def set_epoch(self, epoch: int) -> None:
        """As every data set; the objects to sample are gathered here, once, and not in every worker."""
        super().set_epoch(epoch)
        if self.gt_sampling is not None:
            self._bank(self.gt_sampling)

    def _bank(self, options: GTSampling) -> ObjectBank:
        kept, key = _kept_banks(self.content_hash), repr(options.least)
        if key not in kept:
            kept[key] = ObjectBank.of((self.stored(sample) for sample in range(len(self))), options.least)
        return kept[key]

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        ids = np.asarray(indices, dtype=np.int64)
        frames = [self.stored(int(sample)) for sample in ids]
        shown = [self._shown(int(sample), frame) for sample, frame in zip(ids, frames)]
        samples: dict[str, Any] = {
            "boxes": [boxes for _, boxes, _ in shown],
            "labels": [labels for _, _, labels in shown],
            "ids": torch.from_numpy(ids),
            "views": torch.full((len(ids),), self.view, dtype=torch.int64),
        }
        if self.augment is None:
            samples["truth"] = truth_tensors(frames)
        return {"inputs": [points for points, _, _ in shown], "data_samples": samples}

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample, without batch axis."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of a data set of {len(self)}")
        batch = self.__getitems__([index % len(self)])
        samples = dict(batch["data_samples"])
        truth = samples.pop("truth", None)
        one = {name: value[0] for name, value in samples.items()}
        one |= {} if truth is None else {"truth": {name: value[0] for name, value in truth.items()}}
        return {"inputs": batch["inputs"][0], "data_samples": one}

    def _shown(self, sample: int, frame: Frame) -> tuple[Tensor, Tensor, Tensor]:
        """Points, boxes and labels of the three classes, in the current view."""
        ours = frame.labels >= 0
        points, boxes, labels = frame.points, frame.boxes[ours], frame.labels[ours]
        if self.augment is not None:
            rng = np.random.default_rng([self.seed, self.view, sample])
            if self.gt_sampling is not None:
                bank = self._bank(self.gt_sampling)
                points, boxes, labels = self.gt_sampling((points, boxes, labels), frame.boxes, bank, rng)
            if self.object_noise is not None:
                points, boxes = self.object_noise(points, boxes, rng)
            points, boxes = self.augment(points, boxes, rng)
            points = points[rng.permutation(len(points))]
        return tuple(torch.from_numpy(np.ascontiguousarray(part)) for part in (points, boxes, labels))  # type: ignore[return-value]
