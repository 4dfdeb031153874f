"""The base of image classification data sets: whole batches, stable ids, views, content hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from limbeck.errors import ConfigError, UnknownName
from limbeck.vision.data.augment import ShiftFlip, parse_augment

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


def content_hash(name: str, split: str, *arrays: np.ndarray) -> str:
    """The sha256 of a split: name, and dtype, shape and bytes of what it holds."""
    digest = hashlib.sha256(f"{name}|{split}".encode())
    for array in arrays:
        value = np.ascontiguousarray(array)
        digest.update(f"|{value.dtype.str}{value.shape}|".encode())
        digest.update(value.data)
    return digest.hexdigest()


class VisionDataset(Dataset):
    """A split that gives whole batches; use it with a collate function that returns its argument.

    A batch is `dict(inputs, data_samples=dict(labels, ids, views))`: inputs uint8 (B, C, H, W), the others int64 (B,).
    The view of a sample is `epoch % views`, or the epoch itself with `views=0`; without augmentation it is always 0.

    Args:
        split: 'train', 'val' or 'test'.
        views: how many augmented versions of a sample there are; 0 makes new ones every epoch.
        seed: of the augmentation.

    Attributes:
        name: of the data set, as records name it.
        classes: class names in the order of labels.
        content_hash: sha256 of the content and split of exactly these samples.
        views: 1 where nothing is augmented.
    """

    name: str
    classes: list[str]
    content_hash: str
    labels: np.ndarray

    def __init__(self, split: str, *, views: int, seed: int, augment: Any) -> None:
        check_split(split, self.name)
        if views < 0:
            raise ConfigError(f"views is 0 or more; got {views}")
        self.split = split
        self.augment = augment
        self.views = 1 if augment is None else views
        self.seed = seed
        # Shared memory: workers that outlive an epoch see the new one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def metainfo(self) -> dict[str, Any]:
        """What mmengine's evaluator asks a data set for."""
        return {"classes": list(self.classes)}

    @property
    def view(self) -> int:
        """The view that this epoch shows."""
        epoch = int(self._epoch)
        return epoch % self.views if self.views else epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the view; call it before the epoch's loader is started."""
        self._epoch.fill_(epoch)

    def pipeline(self) -> dict[str, Any]:
        """Everything that decides the pixels, as JSON values."""
        augmented = self.augment is not None
        return {
            "dataset": self.name,
            "content_hash": self.content_hash,
            "split": self.split,
            "augment": _plain(self.augment) if augmented else None,
            "seed": self.seed if augmented else None,
            "views": self.views,
        }

    def images(self, ids: np.ndarray) -> np.ndarray:
        """The pixels (B, C, H, W) of these samples in the current view."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        ids = np.asarray(indices, dtype=np.int64)
        samples = {
            "labels": torch.from_numpy(self.labels[ids].astype(np.int64)),
            "ids": torch.from_numpy(ids),
            "views": torch.full((len(ids),), self.view, dtype=torch.int64),
        }
        return {"inputs": torch.from_numpy(np.ascontiguousarray(self.images(ids))), "data_samples": samples}

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample: inputs (C, H, W) and scalar labels, ids and views."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of a data set of {len(self)}")
        batch = self.__getitems__([index % len(self)])
        samples: dict[str, Tensor] = batch["data_samples"]
        return {"inputs": batch["inputs"][0], "data_samples": {k: v[0] for k, v in samples.items()}}


class ArrayDataset(VisionDataset):
    """A split that is kept in memory, augmented with `ShiftFlip`.

    Args:
        pixels: uint8 (N, C, H, W). labels: (N,). limit: takes the first samples only.
        content: what is hashed beside the split's name: the stored form where decoding it is not the same everywhere;
            pixels and labels where not given.
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
        self.content_hash = content_hash(self.name, split, *hashed)

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


def check_split(split: str, name: str) -> None:
    """Raises: UnknownName for a split that no data set has."""
    if split not in SPLITS:
        raise UnknownName("split", split, SPLITS, f"of {name}")


def check_limit(limit: int | None, count: int, name: str) -> int:
    """How many samples to take. Raises: ConfigError when the split has fewer than `limit`."""
    if limit is None:
        return count
    if not 1 <= limit <= count:
        raise ConfigError(f"limit of {name} is between 1 and {count}, the size of the split; got {limit}")
    return limit


def _plain(augment: Any) -> dict[str, Any]:
    values = {name: getattr(augment, name) for name in augment.__dataclass_fields__}
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
    return {"type": type(augment).__name__, **values}
