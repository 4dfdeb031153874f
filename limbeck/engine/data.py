"""The base of data sets of images: whole batches, stable ids, views, content hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from limbeck.errors import ConfigError, UnknownName

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
UNLABELLED = -1  # the label of a sample whose class the training may not know


def content_hash(name: str, split: str, *arrays: np.ndarray) -> str:
    """The sha256 of a split: name, and dtype, shape and bytes of what it holds."""
    return content_hashes(name, split, *arrays)[-1]


def content_hashes(name: str, split: str, *arrays: np.ndarray) -> list[str]:
    """`content_hash` of no array, of the first, of the first two, …: one reading gives them all."""
    digest = hashlib.sha256(f"{name}|{split}".encode())
    found = [digest.hexdigest()]
    for array in arrays:
        value = np.ascontiguousarray(array)
        digest.update(f"|{value.dtype.str}{value.shape}|".encode())
        digest.update(value.data)
        found.append(digest.hexdigest())
    return found


class ViewDataset(Dataset):
    """A split that gives whole batches; use it with a collate function that returns its argument.

    A batch is `dict(inputs, data_samples=dict(ids, views, …))`: inputs uint8 (B, C, H, W), ids and views int64 (B,),
    and the task's targets. The view of a sample is `epoch % views`, or the epoch itself with `views=0`; without
    augmentation it is always 0. Subclasses implement `__len__` and `batch`.

    Args:
        split: 'train', 'val' or 'test'.
        views: how many augmented versions of a sample there are; 0 makes new ones every epoch.
        seed: of the augmentation.
        augment: a dataclass that holds the augmentation's options, or None.

    Attributes:
        name: of the data set, as records name it.
        classes: class names in the order of labels.
        content_hash: sha256 of the content and split of exactly these samples.
        images_hash: the same without the labels; `content_hash` where the two cannot be told apart.
        views: 1 where nothing is augmented.
    """

    name: str
    classes: list[str]
    content_hash: str

    @property
    def images_hash(self) -> str:
        return self.content_hash

    def __init__(self, split: str, *, views: int, seed: int, augment: Any) -> None:
        check_split(split, self.name)
        if views < 0:
            raise ConfigError(f"views is 0 or more; got {views}")
        self.split = split
        self.augment = augment
        self.views = 1 if augment is None else views
        self.seed = seed
        self._epoch = _first_epoch()

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

    def again(self) -> Self:
        """The same samples at epoch 0, with an epoch of their own; what was read and decoded is shared."""
        found = copy(self)
        found._epoch = _first_epoch()
        return found

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

    def batch(self, ids: np.ndarray) -> tuple[np.ndarray, Mapping[str, Tensor]]:
        """Pixels (B, C, H, W) and targets of these samples in the current view, as fresh arrays."""
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        ids = np.asarray(indices, dtype=np.int64)
        pixels, targets = self.batch(ids)
        samples = {
            **targets,
            "ids": torch.from_numpy(ids),
            "views": torch.full((len(ids),), self.view, dtype=torch.int64),
        }
        return {"inputs": torch.from_numpy(np.ascontiguousarray(pixels)), "data_samples": samples}

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample: inputs (C, H, W), and targets, id and view without batch axis."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of a data set of {len(self)}")
        batch = self.__getitems__([index % len(self)])
        samples: dict[str, Tensor] = batch["data_samples"]
        return {"inputs": batch["inputs"][0], "data_samples": {k: v[0] for k, v in samples.items()}}


def _first_epoch() -> Tensor:
    """Epoch 0, in shared memory: workers that outlive an epoch see the new one."""
    return torch.zeros((), dtype=torch.int64).share_memory_()


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


def checked_size(size: Sequence[int], name: str) -> tuple[int, int]:
    """Height and width. Raises: ConfigError unless they are two whole numbers of at least 1."""
    if not isinstance(size, Sequence) or len(size) != 2 or not all(isinstance(n, int) and n >= 1 for n in size):
        raise ConfigError(f"size of {name} is (height, width) in pixels, both at least 1; got {size}")
    return size[0], size[1]


def _plain(augment: Any) -> dict[str, Any]:
    values = {name: getattr(augment, name) for name in augment.__dataclass_fields__}
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
    return {"type": type(augment).__name__, **values}
