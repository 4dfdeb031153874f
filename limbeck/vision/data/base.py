"""The base of image classification data sets: labels (B,) for every batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.engine.augment import parse_augment
from limbeck.engine.data import ViewDataset, check_limit, content_hashes
from limbeck.errors import ConfigError
from limbeck.vision.data.augment import ShiftFlip


class VisionDataset(ViewDataset):
    """A split of labelled images; `data_samples` of a batch has labels int64 (B,). Subclasses implement `images`."""

    labels: np.ndarray

    def images(self, ids: np.ndarray) -> np.ndarray:
        """The pixels (B, C, H, W) of these samples in the current view."""
        raise NotImplementedError

    def batch(self, ids: np.ndarray) -> tuple[np.ndarray, dict[str, Tensor]]:
        return self.images(ids), {"labels": torch.from_numpy(self.labels[ids].astype(np.int64))}

    def __len__(self) -> int:
        return len(self.labels)


class ArrayDataset(VisionDataset):
    """A split that is kept in memory, augmented with `ShiftFlip`.

    Args:
        pixels: uint8 (N, C, H, W). labels: (N,). limit: takes the first samples only.
        content: what is hashed beside the split's name, the labels last: the stored form where decoding it is not the
            same everywhere; pixels and labels where not given.
    """

    def __init__(
        self,
        split: str,
        pixels: np.ndarray,
        labels: np.ndarray,
        *,
        augment: Mapping[str, Any] | None,
        views: int,
        seed: int,
        limit: int | None,
        content: Sequence[np.ndarray] | None = None,
    ) -> None:
        super().__init__(split, views=views, seed=seed, augment=parse_augment(ShiftFlip, augment))
        count = check_limit(limit, len(labels), self.name)
        self.pixels = pixels[:count]
        self.labels = labels[:count].astype(np.int64)
        hashed = (self.pixels, self.labels) if content is None else content
        *_, self._images_hash, self.content_hash = content_hashes(self.name, split, *hashed)

    @property
    def images_hash(self) -> str:
        return self._images_hash

    def images(self, ids: np.ndarray) -> np.ndarray:
        pixels = self.pixels[ids]
        return pixels if self.augment is None else self.augment(pixels, ids, seed=self.seed, view=self.view)


def held_out(split: str, count: int, val_size: int) -> slice:
    """The part of the published training file that is 'train' or 'val' (its last samples); for 'test' all of its own.

    Raises: ConfigError when nothing is left to train on.
    """
    if split == "test":
        return slice(0, count)
    if not 0 < val_size < count:
        raise ConfigError(f"val_size is between 1 and {count - 1}; got {val_size}")
    return slice(count - val_size, count) if split == "val" else slice(0, count - val_size)
