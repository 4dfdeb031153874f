"""Photographs in files: decoded, resized or randomly cropped; the base of every data set that is a folder of images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from limbeck.engine.augment import parse_augment, sample_uniforms
from limbeck.engine.data import check_limit
from limbeck.engine.data_files import BROKEN_IMAGE, damaged, read_manifest
from limbeck.engine.weights import sha256_json
from limbeck.errors import ConfigError, UnknownName
from limbeck.vision.data.augment import CropFlip, ShiftFlip
from limbeck.vision.data.base import VisionDataset

TRIES = 10  # of a crop that fits, as torchvision's RandomResizedCrop
AUGMENTS: Mapping[str, type[CropFlip] | type[ShiftFlip]] = {"CropFlip": CropFlip, "ShiftFlip": ShiftFlip}


@dataclass(frozen=True)
class Scan:
    """What was found of a split, without opening an image.

    Args:
        classes: in the order of labels.
        files: paths below the root, with forward slashes.
        labels: of the files.
        content: JSON value that is another one where the content of these files is another.
    """

    classes: Sequence[str]
    files: Sequence[str]
    labels: Sequence[int]
    content: Any


def photo_augment(config: Mapping[str, Any] | None) -> CropFlip | ShiftFlip | None:
    """`dict(scale=…, ratio=…, flip=…)` makes a CropFlip, `dict(type='ShiftFlip', pad=…, flip=…)` the other.

    Raises: UnknownName; ConfigError for a value that does not fit.
    """
    if config is None:
        return None
    options = dict(config)
    kind = str(options.pop("type", "CropFlip"))
    if kind not in AUGMENTS:
        raise UnknownName("augmentation", kind, AUGMENTS)
    return parse_augment(AUGMENTS[kind], options)  # type: ignore[return-value]  # one of the two


class Photos(VisionDataset):
    """RGB photographs (3, size, size) from files. A subclass says in `scan` what a split holds.

    Without CropFlip the shorter side is resized to `size / crop_pct` and the centre is cut out.
    Samples are ordered by the sha256 of their path, so that the first n are a fair draw from all classes.

    Args:
        root: folder that the paths of the files start at.
        split: 'train', 'val' or 'test'.
        size: side of the images in pixels.
        crop_pct: share of the resized image's side that the centre crop keeps.
        augment: see `photo_augment`.
        views, seed: see VisionDataset.
        limit: takes the first samples of that order only.
        in_memory: decode every file once, now, and keep the pixels: resized, or as decoded where CropFlip needs them.
    Raises: DataMissing, CorruptFile, ConfigError.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        *,
        size: int,
        crop_pct: float,
        augment: Mapping[str, Any] | None,
        views: int,
        seed: int,
        limit: int | None,
        in_memory: bool,
    ) -> None:
        super().__init__(split, views=views, seed=seed, augment=photo_augment(augment))
        if size < 1 or not 0 < crop_pct <= 1:
            raise ConfigError(f"size is positive and crop_pct in (0, 1]; got {size} and {crop_pct}")
        self.root = root
        self.size = size
        self.crop_pct = crop_pct
        found = self.scan(split)
        self.classes = list(found.classes)
        if len(self.classes) < 2:
            raise ConfigError(f"{root} has the class {self.classes[0]!r} only; a classifier needs two or more")
        order = sorted(range(len(found.files)), key=lambda i: hashlib.sha256(found.files[i].encode()).digest())
        order = order[: check_limit(limit, len(order), self.name)]
        self.files = [found.files[i] for i in order]
        self.labels = np.array([found.labels[i] for i in order], np.int64)
        self.content_hash = sha256_json({"content": found.content, "split": split, "files": self.files})
        self._memory: np.ndarray | list[np.ndarray] | None = self._load() if in_memory else None

    def scan(self, split: str) -> Scan:
        """The files of a split, at least one. Raises: DataMissing, CorruptFile, ConfigError."""
        raise NotImplementedError

    def pipeline(self) -> dict[str, Any]:
        """Everything that decides the pixels, with the libraries that decode and resize."""
        versions = f"pillow {PIL.__version__}, torchvision {torchvision.__version__}"
        return super().pipeline() | {"size": self.size, "crop_pct": self.crop_pct, "decoder": versions}

    def images(self, ids: np.ndarray) -> np.ndarray:
        if isinstance(self.augment, CropFlip):
            return np.stack([self._crop(int(i)) for i in ids])
        kept = self._memory if isinstance(self._memory, np.ndarray) else None
        pixels = np.stack([self._resized(int(i)) for i in ids]) if kept is None else kept[ids]
        return pixels if self.augment is None else self.augment(pixels, ids, seed=self.seed, view=self.view)

    def _load(self) -> np.ndarray | list[np.ndarray]:
        if isinstance(self.augment, CropFlip):
            return [self._decode(i) for i in range(len(self.files))]
        pixels = np.empty((len(self.files), 3, self.size, self.size), np.uint8)
        for i in range(len(pixels)):
            pixels[i] = self._resized(i)
        return pixels

    def _decode(self, sample: int) -> np.ndarray:
        """The pixels (3, H, W) of a file."""
        path = self.root / self.files[sample]
        try:
            with Image.open(path) as opened:
                return np.ascontiguousarray(np.asarray(opened.convert("RGB")).transpose(2, 0, 1))
        except BROKEN_IMAGE as error:
            raise damaged(
                path, f"not a whole image ({error})", read_manifest(self.root).get(self.files[sample])
            ) from error

    def _resized(self, sample: int) -> np.ndarray:
        """The centre (3, size, size) of a file's resized image."""
        pixels = torch.from_numpy(self._decode(sample))
        resized = TF.resize(pixels, [round(self.size / self.crop_pct)], InterpolationMode.BICUBIC, antialias=True)
        return TF.center_crop(resized, [self.size, self.size]).numpy()

    def _crop(self, sample: int) -> np.ndarray:
        """A random part of a file's image, resized to (3, size, size)."""
        augment = self.augment
        pixels = torch.from_numpy(self._memory[sample] if self._memory is not None else self._decode(sample))
        dice = sample_uniforms(self.seed, self.view, np.array([sample]), 4 * TRIES + 1)[0]
        top, left, height, width = augment.box(*pixels.shape[1:], dice[:-1])
        side = [self.size, self.size]
        out: Tensor = TF.resized_crop(pixels, top, left, height, width, side, InterpolationMode.BICUBIC, antialias=True)
        return (TF.horizontal_flip(out) if augment.flip and dice[-1] < 0.5 else out).numpy()
