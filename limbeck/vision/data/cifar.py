"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 50,000 and 10,000 photographs 32 × 32, and a JPEG copy of CIFAR-10."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from limbeck.engine.data import check_limit, check_split
from limbeck.engine.data_files import check_labels, damaged, decoder, find_folder, read_arrays, usual_folders
from limbeck.engine.registry import DATASETS
from limbeck.vision.data._cifar_files import CIFAR10_CLASSES, PUBLISHED, SIZE, read_published
from limbeck.vision.data.base import ArrayDataset, held_out

JPEG_COPY = "put train.npz and test.npz into $LIMBECK_DATA/cifar10, or set root to the folder that has them"


def find_jpeg_copy(part: str = "train.npz", root: str | Path | None = None) -> Path:
    """The folder of the JPEG copy. Raises: DataMissing saying where to put it."""
    return find_folder("the JPEG copy of CIFAR-10", usual_folders("cifar10", root), [part], JPEG_COPY)


def decode_jpegs(path: Path, data: np.ndarray, offsets: np.ndarray, first: int = 0) -> np.ndarray:
    """Decode JPEG files that lie end to end.

    Args:
        path: where they are from; for errors. first: index in that file of the first image; for errors.
        data: uint8 bytes. offsets: (N + 1,); image i is `data[offsets[i]:offsets[i + 1]]`.
    Returns: uint8 (N, 3, 32, 32).
    Raises: CorruptFile naming the image that is not whole or has another size.
    """
    pixels = np.empty((len(offsets) - 1, 3, SIZE, SIZE), np.uint8)
    for i, (begin, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist())):
        try:
            with Image.open(io.BytesIO(data[begin:end].tobytes()), formats=("JPEG",)) as opened:
                image = np.asarray(opened.convert("RGB"))
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            reason = "no JPEG file" if isinstance(error, UnidentifiedImageError) else error
            raise damaged(path, f"image {first + i} does not decode ({reason})") from error
        if image.shape != (SIZE, SIZE, 3):
            height, width = image.shape[:2]
            raise damaged(path, f"image {first + i} is {width} × {height}, not {SIZE} × {SIZE} pixels")
        pixels[i] = image.transpose(2, 0, 1)
    return pixels


@DATASETS.register_module()
class CIFAR10JPEG(ArrayDataset):
    """CIFAR-10 as a JPEG copy (quality about 75): not the original pixels, so published figures do not compare.

    Looked for in `root`; without it in $LIMBECK_DATA/cifar10 and in the cache folder. Classes take turns in the files,
    so every prefix is balanced, and so is val. The content hash is of the JPEG bytes and labels, since the decoded
    pixels differ between JPEG libraries.

    Args:
        split: 'train', 'val' or 'test'.
        root: folder with train.npz and test.npz, each with `jpeg` (uint8, all files end to end), `offsets` (N + 1,) and
            `labels` (N,).
        augment: `dict(pad=4, flip=True)` crops after zero padding and flips; None for none.
        views: augmented versions of a sample; 0 makes new ones every epoch.
        seed: of the augmentation.
        limit: takes the first samples of the split only; the others are not decoded.
        val_size: the last samples of the training file that are held out as val.
    Raises: DataMissing, CorruptFile, ConfigError.
    """

    name = "cifar10-jpeg"

    def __init__(
        self,
        split: str,
        root: str | None = None,
        augment: Mapping[str, Any] | None = None,
        views: int = 0,
        seed: int = 0,
        limit: int | None = None,
        val_size: int = 5000,
    ) -> None:
        check_split(split, self.name)
        self.classes = list(CIFAR10_CLASSES)
        part = "test.npz" if split == "test" else "train.npz"
        path = find_jpeg_copy(part, root) / part
        data, offsets, labels = read_arrays(path, "jpeg", "offsets", "labels")
        _check_container(path, data, offsets, labels)
        chosen = held_out(split, len(labels), val_size)
        start = chosen.start
        stop = start + check_limit(limit, chosen.stop - start, self.name)
        offsets, labels = offsets[start : stop + 1], labels[start:stop]
        pixels = decode_jpegs(path, data, offsets, start)
        content = [data[offsets[0] : offsets[-1]], offsets - offsets[0], labels]
        super().__init__(split, pixels, labels, augment=augment, views=views, seed=seed, limit=None, content=content)

    def pipeline(self) -> dict[str, Any]:
        """Everything that decides the pixels, with the library that decodes."""
        return super().pipeline() | {"decoder": decoder()}


def _check_container(path: Path, data: np.ndarray, offsets: np.ndarray, labels: np.ndarray) -> None:
    """Raises: CorruptFile when lengths, types or labels do not fit each other."""
    shapes = data.ndim == 1 and labels.ndim == 1 and len(labels) > 0 and offsets.shape == (len(labels) + 1,)
    if data.dtype != np.uint8 or not shapes or labels.dtype.kind not in "iu" or offsets.dtype.kind not in "iu":
        raise damaged(path, f"holds jpeg {data.shape} {data.dtype}, offsets {offsets.shape} and labels {labels.shape}")
    if offsets[0] != 0 or offsets[-1] != len(data) or (np.diff(offsets.astype(np.int64)) <= 0).any():
        raise damaged(path, f"offsets do not rise from 0 to {len(data)}, the length of jpeg")
    check_labels(path, labels, len(CIFAR10_CLASSES))


class _CIFAR(ArrayDataset):
    """The original pixels of CIFAR-10 or CIFAR-100, from the published binary files.

    Args:
        split: 'train', 'val' or 'test'.
        root: folder with the published .bin files, or the one that their archive was unpacked in.
        augment: `dict(pad=4, flip=True)` crops after zero padding and flips; None for none.
        views: augmented versions of a sample; 0 makes new ones every epoch.
        seed: of the augmentation.
        limit: takes the first samples of the split only.
        val_size: the last samples of the published training set, in file order, that are held out as val.
    Raises: DataMissing, CorruptFile, ConfigError.
    """

    def __init__(
        self,
        split: str,
        root: str | None = None,
        augment: Mapping[str, Any] | None = None,
        views: int = 0,
        seed: int = 0,
        limit: int | None = None,
        val_size: int = 5000,
    ) -> None:
        check_split(split, self.name)
        self.classes = list(PUBLISHED[self.name].classes)
        pixels, labels = read_published(self.name, "test" if split == "test" else "train", root)
        chosen = held_out(split, len(labels), val_size)
        super().__init__(split, pixels[chosen], labels[chosen], augment=augment, views=views, seed=seed, limit=limit)


@DATASETS.register_module()
class CIFAR10(_CIFAR):
    """Ten classes of photographs (3, 32, 32): 45,000 / 5,000 / 10,000, the original pixels.

    Looked for in `root`; without it in $LIMBECK_DATA/cifar10_original and in the cache folder, which
    `limbeck data get cifar10` fills.
    """

    name = "cifar10"


@DATASETS.register_module()
class CIFAR100(_CIFAR):
    """A hundred classes (the fine labels) of photographs (3, 32, 32): 45,000 / 5,000 / 10,000, the original pixels.

    Looked for in `root`; without it in $LIMBECK_DATA/cifar100 and in the cache folder, which
    `limbeck data get cifar100` fills.
    """

    name = "cifar100"
