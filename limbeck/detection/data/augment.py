"""Augmentation of images with boxes; the random numbers come from `limbeck.engine.augment`, by sample and view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from limbeck.detection.data.base import Objects
from limbeck.engine.augment import check_scale_crop, overlap
from limbeck.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ScaleCropFlip:
    """Random scale, a crop of fixed size, and horizontal flip with probability one half.

    Where the scaled image is smaller than the crop it lies at a random place in it, with `fill` around it; the whole
    crop counts as the image. Boxes move exactly as the edges of pixels do and are cut at the crop. One of which too
    little is left is dropped, and the rest of the object becomes background; crowds stay while anything is left.

    Args:
        scale: smallest and largest factor; drawn uniformly.
        flip: flip half of the images.
        size: height and width of the crop; None is the size of the images.
        fill: grey level of padding, 0 to 255; the default is the zero of mean 0.5.
        least_visible: share of a box's area that has to stay within the crop, 0 to 1.
        least_side: width and height in pixels that have to be left.
    Raises: ConfigError.
    """

    scale: tuple[float, float] = (0.75, 1.5)
    flip: bool = True
    size: tuple[int, int] | None = None
    fill: int = 128
    least_visible: float = 0.3
    least_side: float = 2.0
    draws = 4  # random numbers a sample; without annotation it is no option

    def __post_init__(self) -> None:
        check_scale_crop(self.scale, self.size, self.fill)
        if not 0 <= self.least_visible <= 1:
            raise ConfigError(f"augment least_visible is a share from 0 to 1; got {self.least_visible}")
        if self.least_side < 0:
            raise ConfigError(f"augment least_side is 0 or more pixels; got {self.least_side}")

    def __call__(self, image: np.ndarray, objects: Objects, dice: np.ndarray) -> tuple[np.ndarray, Objects]:
        """Augment an image uint8 (H, W, 3) and its objects alike; `dice` are four uniform numbers."""
        size = (image.shape[0], image.shape[1]) if self.size is None else (self.size[0], self.size[1])
        factor = self.scale[0] + dice[0] * (self.scale[1] - self.scale[0])
        height, width = (max(1, round(side * factor)) for side in image.shape[:2])
        rows, into_rows = overlap(height, size[0], dice[1])
        columns, into_columns = overlap(width, size[1], dice[2])
        pixels = np.full((*size, 3), self.fill, np.uint8)
        scaled = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)
        pixels[into_rows, into_columns] = scaled[rows, columns]
        factors = (width / image.shape[1], height / image.shape[0])  # of whole pixels, not the one that was drawn
        shift = (into_columns.start - columns.start, into_rows.start - rows.start)
        objects = objects.moved(factors, shift)
        objects = objects.clipped(size, least_visible=self.least_visible, least_side=self.least_side)
        if self.flip and dice[3] < 0.5:
            return pixels[:, ::-1], objects.mirrored(size[1])
        return pixels, objects


@dataclass(frozen=True, slots=True)
class ResizeFlip:
    """mmdetection's training transforms for COCO: resize with kept proportions, then flip; nothing is cropped.

    Args:
        scales: (longer side, shorter side) that images are brought into as large as they fit, one drawn for every
            image, such as ((1333, 640), (1333, 800)); None is the data set's `scale`.
        flip: probability of a horizontal flip.
    Raises: ConfigError.
    """

    scales: Sequence[Sequence[int]] | None = None
    flip: float = 0.5
    draws = 2

    def __post_init__(self) -> None:
        for scale in self.scales or ():
            checked_scale(scale)
        if self.scales is not None and not self.scales:
            raise ConfigError("augment scales is empty; leave it out for the data set's own scale")
        if not 0 <= self.flip <= 1:
            raise ConfigError(f"augment flip is a probability from 0 to 1; got {self.flip}")

    def __call__(self, image: np.ndarray, objects: Objects, dice: np.ndarray) -> tuple[np.ndarray, Objects]:
        """Augment an image uint8 (H, W, 3) and its objects alike; `dice` are two uniform numbers."""
        scales = self.scales or ()
        image, objects = resized(image, objects, scales[int(dice[0] * len(scales))])
        if dice[1] < self.flip:
            return image[:, ::-1], objects.mirrored(image.shape[1])
        return image, objects


def checked_scale(scale: Sequence[int]) -> tuple[int, int]:
    """(longer side, shorter side). Raises: ConfigError unless they are two whole numbers of at least 1."""
    if not isinstance(scale, Sequence) or len(scale) != 2 or not all(isinstance(n, int) and n >= 1 for n in scale):
        raise ConfigError(f"a scale is (longer side, shorter side) in pixels, both at least 1; got {scale}")
    return scale[0], scale[1]


def fitted(size: tuple[int, int], scale: Sequence[int]) -> tuple[int, int]:
    """Height and width of an image (height, width) brought into `scale`, rounded as mmcv rounds."""
    factor = min(max(scale) / max(size), min(scale) / min(size))
    return int(size[0] * factor + 0.5), int(size[1] * factor + 0.5)


def resized(image: np.ndarray, objects: Objects, scale: Sequence[int]) -> tuple[np.ndarray, Objects]:
    """Image uint8 (H, W, 3) and objects at the largest size within `scale` that keeps the proportions."""
    before = (image.shape[0], image.shape[1])
    height, width = fitted(before, scale)
    if (height, width) != before:
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return image, objects.moved((width / before[1], height / before[0])).clipped((height, width))
