"""Augmentation of images with label maps; its random numbers come from `limbeck.engine.augment`."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from limbeck.engine.augment import check_scale_crop, overlap, sample_uniforms
from limbeck.engine.losses import IGNORE


@dataclass(frozen=True, slots=True)
class ScaleCropFlip:
    """Random scale, a crop of fixed size, and horizontal flip with probability one half.

    Where the scaled image is smaller than the crop it lies at a random place in it; around it labels are 255 (ignore)
    and pixels are `fill`. Images are scaled bilinearly, labels by nearest, both with aligned pixel centres.

    Args:
        scale: smallest and largest factor; drawn uniformly.
        flip: flip half of the images.
        size: height and width of the crop; None is the size of the images.
        fill: grey level of padding, 0 to 255; the default is the zero of mean 0.5.
    Raises: ConfigError.
    """

    scale: tuple[float, float] = (0.75, 1.5)
    flip: bool = True
    size: tuple[int, int] | None = None
    fill: int = 128

    def __post_init__(self) -> None:
        check_scale_crop(self.scale, self.size, self.fill)

    def __call__(
        self, images: np.ndarray, maps: np.ndarray, ids: np.ndarray, *, seed: int, view: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Augment uint8 images (B, H, W, 3) and their label maps (B, H, W) alike; the channels stay last."""
        height, width = self.size or images.shape[1:3]
        pixels = np.full((len(images), height, width, 3), self.fill, np.uint8)
        labels = np.full((len(images), height, width), IGNORE, np.uint8)
        dice = sample_uniforms(seed, view, ids, 4)
        for n, (image, label) in enumerate(zip(images, maps)):
            scaled = _scaled(label.shape, self.scale[0] + dice[n, 0] * (self.scale[1] - self.scale[0]))
            rows, into_rows = overlap(scaled[0], height, dice[n, 1])
            columns, into_columns = overlap(scaled[1], width, dice[n, 2])
            image = cv2.resize(image, scaled[::-1], interpolation=cv2.INTER_LINEAR_EXACT)
            label = cv2.resize(label, scaled[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
            pixels[n, into_rows, into_columns] = image[rows, columns]
            labels[n, into_rows, into_columns] = label[rows, columns]
        if self.flip:
            flipped = np.flatnonzero(dice[:, 3] < 0.5)
            pixels[flipped] = pixels[flipped, :, ::-1]
            labels[flipped] = labels[flipped, :, ::-1]
        return pixels, labels


def _scaled(shape: tuple[int, ...], factor: float) -> tuple[int, int]:
    return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))
