"""Fashion-MNIST (arXiv 1708.07747, MIT licence): 60,000 and 10,000 grey images of clothing, 28 × 28."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.engine.data_files import check_labels, damaged, read_arrays, shared_data
from limbeck.engine.paths import cache_dir
from limbeck.engine.registry import DATASETS
from limbeck.errors import DataMissing
from limbeck.vision.data.base import ArrayDataset, held_out

CLASSES = (
    "t-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # apt-get install dataset-fashion-mnist
# Debian's .gz files. Other copies were compressed otherwise, so these hashes only explain a damaged file.
DEBIAN_SHA256 = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
_GET = "get it with: limbeck data get fashion-mnist"


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of bytes, compressed with gzip. Raises: CorruptFile when it is not whole."""
    expected = DEBIAN_SHA256.get(path.name)
    try:
        raw = gzip.decompress(path.read_bytes())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise damaged(path, f"not a whole gzip file ({error})", expected) from error
    axes = raw[3] if len(raw) > 4 and raw[:3] == b"\0\0\x08" else 0
    shape = tuple(int(n) for n in np.frombuffer(raw, ">u4", axes, 4)) if axes and len(raw) >= 4 + 4 * axes else ()
    if not shape or len(raw) != 4 + 4 * axes + int(np.prod(shape, dtype=np.int64)):
        raise damaged(path, f"{len(raw)} bytes are not an IDX file of shape {shape}", expected)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape)


def find_files(part: str, root: str | Path | None = None) -> list[Path]:
    """The files of 'train' or 'test': one .npz, or the IDX pair (images, labels).

    Raises: DataMissing naming where it looked and the command that gets the data.
    """
    if root is not None:
        folders = [Path(root)]
    else:
        shared = shared_data()
        named = [] if shared is None else [shared / "fashion_mnist"]
        folders = [*named, DEBIAN, cache_dir() / "data" / "fashion_mnist"]
    prefix = "train" if part == "train" else "t10k"
    for folder in folders:
        npz = folder / f"{part}.npz"
        idx = [folder / f"{prefix}-images-idx3-ubyte.gz", folder / f"{prefix}-labels-idx1-ubyte.gz"]
        if npz.is_file():
            return [npz]
        if all(path.is_file() for path in idx):
            return idx
    raise DataMissing(f"Fashion-MNIST ({part}) is not in {', '.join(str(f) for f in folders)}; {_GET}")


def read_part(part: str, root: str | Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28) and labels (N,) of 'train' or 'test', wherever they are.

    Raises: DataMissing; CorruptFile.
    """
    files = find_files(part, root)
    images, labels = read_arrays(files[0], "images", "labels") if len(files) == 1 else map(read_idx, files)
    if images.ndim != 3 or images.dtype != np.uint8 or labels.shape != images.shape[:1]:
        raise damaged(files[0], f"holds images {images.shape} {images.dtype} and labels {labels.shape}")
    check_labels(files[-1], labels, len(CLASSES))
    return images, labels


@DATASETS.register_module()
class FashionMNIST(ArrayDataset):
    """Grey images (1, 28, 28) of ten kinds of clothing; val is the last part of the published training set.

    Looked for in `root`; without it in $LIMBECK_DATA/fashion_mnist, in Debian's dataset-fashion-mnist, and in the cache
    folder. The content hash is of pixels and labels, so it does not depend on where they were found.

    Args:
        split: 'train', 'val' or 'test'.
        root: folder with train.npz and test.npz, or with the published .gz files.
        augment: `dict(pad=2, flip=True)` crops after zero padding and flips; None for none.
        views: augmented versions of a sample; 0 makes new ones every epoch.
        seed: of the augmentation.
        limit: takes the first samples of the split only; they are not balanced by class.
        val_size: the last samples of the training set that are held out as val.
    Raises: DataMissing, CorruptFile.
    """

    name = "fashion-mnist"

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
        self.classes = list(CLASSES)
        images, labels = read_part("test" if split == "test" else "train", root)
        chosen = held_out(split, len(labels), val_size)
        pixels = images[chosen, None]
        super().__init__(split, pixels, labels[chosen], augment=augment, views=views, seed=seed, limit=limit)
