"""Digit scenes as detection: ten digits with exact boxes; made when first asked for, nothing to download."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from limbeck.detection.data.augment import ScaleCropFlip
from limbeck.detection.data.base import DetectionDataset, Objects
from limbeck.engine.augment import parse_augment
from limbeck.engine.data import checked_size
from limbeck.engine.registry import DATASETS
from limbeck.engine.scenes import CLASSES, PALETTE, SceneMaker, checked_count
from limbeck.engine.weights import sha256_json


@DATASETS.register_module()
class DigitScenesBoxes(DetectionDataset):
    """Scenes of real handwritten digits (3, H, W) with the exact boxes of what is visible of each; ten classes.

    The scenes are those of segmentation's `DigitScenes` with the same size and seed. Train, val and test are made of
    disjoint digits. A scene is made when it is first asked for, and then kept.

    Args:
        split: 'train', 'val' or 'test'.
        count: how many scenes; 2,000 / 500 / 1,000 where not given. More go on where fewer end.
        size: height and width in pixels.
        digits: the fewest and the most digits in a scene.
        scale: the smallest and the largest side in pixels of a digit's field.
        augment: options of `ScaleCropFlip`; digits are not to be flipped: `dict(scale=(0.75, 1.5), flip=False)`.
        views: augmented versions of a sample; 0 makes new ones every epoch.
        seed: of the augmentation; the scenes do not depend on it.
        scene_seed: of the scenes: another number makes another data set.
    Raises: UnknownName, ConfigError.
    """

    name = "digit-scenes-boxes"

    def __init__(
        self,
        split: str,
        count: int | None = None,
        size: Sequence[int] = (96, 96),
        digits: Sequence[int] = (3, 7),
        scale: Sequence[float] = (14.0, 32.0),
        augment: Mapping[str, Any] | None = None,
        views: int = 1,
        seed: int = 0,
        scene_seed: int = 0,
    ) -> None:
        super().__init__(split, augment=parse_augment(ScaleCropFlip, augment), views=views, seed=seed)
        self.size = checked_size(size, self.name)
        count = checked_count(count, split, self.name)
        self.classes = list(CLASSES)
        self.palette = list(PALETTE)
        self.image_ids = range(count)
        self.category_ids = range(len(CLASSES))
        self._make = SceneMaker(split, seed=scene_seed, size=self.size, digits=digits, scale=scale)
        self.content_hash = sha256_json({"task": "detection", "scenes": self._make.content_hash, "count": count})
        self._pixels = np.zeros((count, *self.size, 3), np.uint8)
        self._objects: list[Objects | None] = [None] * count

    def pipeline(self) -> dict[str, Any]:
        """Everything that decides the pixels, with the library that draws."""
        return super().pipeline() | {"size": list(self.size), "drawer": f"opencv {cv2.__version__}"}

    def stored(self, sample: int) -> tuple[np.ndarray, Objects]:
        found = self._objects[sample]
        if found is None:
            scene = self._make(sample)
            self._pixels[sample] = scene.image
            found = self._objects[sample] = Objects.of(scene.boxes, scene.labels)
        return self._pixels[sample], found

    def _scales(self, ids: np.ndarray) -> np.ndarray:
        return np.ones((len(ids), 2))

    def __len__(self) -> int:
        return len(self._objects)
