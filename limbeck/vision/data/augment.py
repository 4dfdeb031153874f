"""Augmentation of classified images; its random numbers come from `limbeck.engine.augment`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from limbeck.engine.augment import sample_uniforms
from limbeck.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ShiftFlip:
    """Random crop after zero padding, and horizontal flip with probability one half.

    Args:
        pad: pixels on each side; 0 does not crop.
        flip: flip half of the images.
    """

    pad: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise ConfigError(f"augment pad is not negative; got {self.pad}")

    def __call__(self, images: np.ndarray, ids: np.ndarray, *, seed: int, view: int) -> np.ndarray:
        """Augment uint8 images (B, C, H, W)."""
        dice = sample_uniforms(seed, view, ids, 3)
        if self.pad:
            p, size = self.pad, images.shape[2:]
            padded = np.pad(images, ((0, 0), (0, 0), (p, p), (p, p)))
            windows = np.lib.stride_tricks.sliding_window_view(padded, size, axis=(2, 3))  # type: ignore[call-overload]
            top, left = (dice[:, :2] * (2 * p + 1)).astype(np.int64).T
            images = windows[np.arange(len(images)), :, top, left]
        if self.flip:
            flipped = dice[:, 2] < 0.5
            images = np.where(flipped[:, None, None, None], images[..., ::-1], images)
        return images


@dataclass(frozen=True, slots=True)
class CropFlip:
    """Random resized crop and horizontal flip, for photographs.

    Args:
        scale: smallest and largest share of the area that is kept.
        ratio: narrowest and widest shape, width / height.
        flip: flip half of the images.
    """

    scale: tuple[float, float] = (0.35, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise ConfigError(f"augment scale {self.scale} and ratio {self.ratio} are (low, high); scale is in (0, 1]")

    def box(self, height: int, width: int, dice: np.ndarray) -> tuple[int, int, int, int]:
        """Top, left, height and width of the crop; `dice` holds four uniform numbers for each of the tries.

        Raises no error where no try fits: then the largest centred crop of a fitting shape is taken.
        """
        low, high = np.log(self.ratio)
        for area, shape, y, x in dice.reshape(-1, 4):
            target = height * width * (self.scale[0] + area * (self.scale[1] - self.scale[0]))
            aspect = math.exp(low + shape * (high - low))
            w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
            if 0 < w <= width and 0 < h <= height:
                return int(y * (height - h + 1)), int(x * (width - w + 1)), h, w
        w = min(width, round(height * self.ratio[1]))
        h = min(height, round(width / self.ratio[0]))
        return (height - h) // 2, (width - w) // 2, h, w
