"""Digit scenes as segmentation: background and ten digits; made when first asked for, nothing to download."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from limbeck.engine.registry import DATASETS
from limbeck.engine.scenes import CLASSES, PALETTE, SceneMaker, checked_count
from limbeck.engine.weights import sha256_json
from limbeck.segmentation.data.base import SegmentationDataset


@DATASETS.register_module()
class DigitScenes(SegmentationDataset):
    """Scenes of three to seven real handwritten digits (3, H, W), with exact label maps: 0 background, 1 + digit.

    Train, val and test are made of disjoint digits. A scene is made when it is first asked for, and then kept.

    Args:
        split: 'train', 'val' or 'test'.
        count: how many scenes; 2,000 / 500 / 1,000 where not given. More go on where fewer end.
        size: height and width in pixels.
        augment: options of `ScaleCropFlip`; digits are not to be flipped: `dict(scale=(0.75, 1.5), flip=False)`.
        views: augmented versions of a sample; 0 makes new ones every epoch.
        seed: of the augmentation; the scenes do not depend on it.
        scene_seed: of the scenes: another number makes another data set.
    Raises: UnknownName, ConfigError.
    """

    name = "digit-scenes"

    def __init__(
        self,
        split: str,
        count: int | None = None,
        size: Sequence[int] = (64, 64),
        augment: Mapping[str, Any] | None = None,
        views: int = 1,
        seed: int = 0,
        scene_seed: int = 0,
    ) -> None:
        super().__init__(split, size=size, augment=augment, views=views, seed=seed)
        count = checked_count(count, split, self.name)
        self.classes = ["background", *CLASSES]
        self.palette = [(0, 0, 0), *PALETTE]
        self._make = SceneMaker(split, seed=scene_seed, size=self.size)
        self.content_hash = sha256_json({"task": "segmentation", "scenes": self._make.content_hash, "count": count})
        self._pixels = np.zeros((count, *self.size, 3), np.uint8)
        self._maps = np.zeros((count, *self.size), np.uint8)
        self._made = np.zeros(count, bool)

    @property
    def pixels(self) -> np.ndarray:
        """All images, uint8 (N, H, W, 3)."""
        return self._all(self._pixels)

    @property
    def maps(self) -> np.ndarray:
        """All label maps, uint8 (N, H, W)."""
        return self._all(self._maps)

    def pipeline(self) -> dict[str, Any]:
        """Everything that decides the pixels, with the library that draws."""
        return super().pipeline() | {"drawer": f"opencv {cv2.__version__}"}

    def stored(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        for index in np.unique(ids[~self._made[ids]]).tolist():
            scene = self._make(index)
            self._pixels[index], self._maps[index] = scene.image, scene.mask
            self._made[index] = True
        return self._pixels[ids], self._maps[ids]

    def __len__(self) -> int:
        return len(self._made)

    def _all(self, kept: np.ndarray) -> np.ndarray:
        self.stored(np.flatnonzero(~self._made))
        return kept
