"""Augmentation without state: the random numbers of a sample are a hash of (seed, view, sample id).

So a resumed run sees the same pixels, in any batch and any worker, and a teacher cache can be keyed by (id, view).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
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


def check_scale_crop(scale: Sequence[float], size: Sequence[int] | None, fill: int) -> None:
    """Check the options of a random scale followed by a crop.

    Raises: ConfigError.
    """
    if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
        raise ConfigError(f"augment scale is (low, high), both above 0; got {scale}")
    if size is not None and [isinstance(n, int) and n >= 1 for n in size] != [True, True]:
        raise ConfigError(f"augment size is (height, width) of the crop, both at least 1; got {size}")
    if not 0 <= fill <= 255:
        raise ConfigError(f"augment fill is a grey level from 0 to 255; got {fill}")


def overlap(have: int, want: int, dice: float) -> tuple[slice, slice]:
    """Which part of a length to take and where to put it: a random cut, or a random place where it is shorter."""
    offset = int(dice * (abs(have - want) + 1))
    if have >= want:
        return slice(offset, offset + want), slice(0, want)
    return slice(0, have), slice(offset, offset + have)
