"""Stateless augmentation: the random numbers of a sample are a hash of (seed, view, sample id).

So a resumed run sees the same pixels, in any batch and any worker, and a teacher cache can be keyed by (id, view).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np

from limbeck.errors import ConfigError, UnknownName

_STEP = np.uint64(0x9E3779B97F4A7C15)
T = TypeVar("T")


def splitmix64(x: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64 (Steele et al. 2014) on uint64 values of any shape."""
    z = x + _STEP
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def sample_uniforms(seed: int, view: int, ids: np.ndarray, count: int) -> np.ndarray:
    """Uniform numbers in [0, 1) of shape (B, count) that depend on seed, view and sample id alone."""
    key = splitmix64(splitmix64(np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64)) ^ np.uint64(view))
    state = splitmix64(key ^ ids.astype(np.uint64))
    streams = _STEP * np.arange(1, count + 1, dtype=np.uint64)
    bits = splitmix64(state[:, None] + streams[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def parse_augment(kind: type[T], config: Mapping[str, Any] | None) -> T | None:
    """An augmentation from its config. Raises: UnknownName for an option that it does not have."""
    if config is None:
        return None
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # every kind here is a dataclass
    for key in config:
        if key not in known:
            raise UnknownName("augmentation option", key, known)
    return kind(**config)


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
