"""The base of semantic segmentation data sets: a label map (H, W) for every image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from limbeck.engine.augment import parse_augment
from limbeck.engine.data import ViewDataset, checked_size
from limbeck.segmentation.data.augment import ScaleCropFlip

Colour = tuple[int, int, int]


class SegmentationDataset(ViewDataset):
    """A split of RGB images with label maps; subclasses implement `stored` and `__len__`.

    A batch has inputs uint8 (B, 3, H, W), and `data_samples` has labels int64 (B, H, W), 255 where a pixel is no class.

    Args:
        split: 'train', 'val' or 'test'.
        size: height and width of the images in memory.
        augment: options of `ScaleCropFlip`, or None.
        views, seed: see ViewDataset.

    Attributes:
        classes: class names in the order of labels.
        palette: one RGB colour a class.
    """

    palette: list[Colour]

    def __init__(
        self, split: str, *, size: Sequence[int], augment: Mapping[str, Any] | None, views: int, seed: int
    ) -> None:
        super().__init__(split, views=views, seed=seed, augment=parse_augment(ScaleCropFlip, augment))
        self.size = checked_size(size, self.name)

    @property
    def metainfo(self) -> dict[str, Any]:
        """What mmengine's evaluator and mmsegmentation's pictures ask a data set for."""
        return super().metainfo | {"palette": [list(colour) for colour in self.palette]}

    def pipeline(self) -> dict[str, Any]:
        """Everything that decides the pixels, with the library that scales them."""
        scaled = {} if self.augment is None else {"scaler": f"opencv {cv2.__version__}"}
        return super().pipeline() | {"size": list(self.size)} | scaled

    def stored(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (B, H, W, 3) and label maps (B, H, W) of these samples as they are, uint8 and fresh arrays."""
        raise NotImplementedError

    def batch(self, ids: np.ndarray) -> tuple[np.ndarray, dict[str, Tensor]]:
        pixels, maps = self.stored(ids)
        if self.augment is not None:
            pixels, maps = self.augment(pixels, maps, ids, seed=self.seed, view=self.view)
        return pixels.transpose(0, 3, 1, 2), {"labels": torch.from_numpy(maps.astype(np.int64))}
