"""CamVid: road scenes in 11 classes (Brostow et al. 2009), the 480 × 360 version of SegNet and most later papers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from limbeck.engine.data import check_limit
from limbeck.engine.data_files import (
    check_manifest,
    damaged,
    decoder,
    find_folder,
    open_image,
    read_manifest,
    read_meta,
    usual_folders,
)
from limbeck.engine.losses import IGNORE
from limbeck.engine.registry import DATASETS
from limbeck.engine.weights import sha256_file, sha256_json
from limbeck.errors import ConfigError, DataMissing
from limbeck.segmentation.data.base import SegmentationDataset

CLASSES = (
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (60, 40, 222)),
    ("tree", (128, 128, 0)),
    ("sign_symbol", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)
VOID = 11  # label of the files' pixels that are no class
ADVICE = "put its folders train, val and test into $LIMBECK_DATA/camvid, or set root to the folder that has them"


@DATASETS.register_module()
class CamVid(SegmentationDataset):
    """Road scenes (3, H, W), 11 classes: 367 / 101 / 233 images, void pixels 255. All of a split is kept in memory.

    Files are `<split>/images/<id>.jpg` (or .png) and `<split>/labels/<id>.png`, one byte a pixel: 0 to 10, 11 is void.
    Looked for in `root`; without it in $LIMBECK_DATA/camvid and in the cache folder. Images are resized once, averaging
    where they shrink, labels by nearest. Grey images, and those with transparency, are converted to RGB.
    Samples are ordered by the sha256 of their path, so that the first n are a fair draw from all videos. val is of a
    video that train has other frames of; most of test is of a video of its own.

    Args:
        split: 'train', 'val' or 'test'.
        root: folder with train, val and test.
        size: height and width; figures at half the size, the default, do not compare with those at (360, 480).
        augment: options of `ScaleCropFlip`, `dict()` for its defaults; None for none.
        views: augmented versions of a sample; 0 makes new ones every epoch.
        seed: of the augmentation.
        limit: takes the first samples of that order only; the others are not decoded.
    Raises: DataMissing, CorruptFile, ConfigError.

    Attributes:
        files: paths of the images below root, in the order of samples.
        pixels: uint8 (N, H, W, 3). maps: label maps uint8 (N, H, W).
    """

    name = "camvid"

    def __init__(
        self,
        split: str,
        root: str | None = None,
        size: Sequence[int] = (180, 240),
        augment: Mapping[str, Any] | None = None,
        views: int = 1,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        super().__init__(split, size=size, augment=augment, views=views, seed=seed)
        self.classes = [name for name, _ in CLASSES]
        self.palette = [colour for _, colour in CLASSES]
        self.root = find_folder("camvid", usual_folders("camvid", root), [f"{split}/images"], ADVICE)
        check_meta(self.root)
        pairs = find_pairs(self.root, split)
        manifest = read_manifest(self.root)
        if manifest:
            check_listed(self.root, split, manifest, pairs)
        pairs = pairs[: check_limit(limit, len(pairs), self.name)]
        self.files = [image for image, _ in pairs]
        self.pixels = np.empty((len(pairs), *self.size, 3), np.uint8)
        self.maps = np.empty((len(pairs), *self.size), np.uint8)
        found = [self._load(index, *pair, manifest) for index, pair in enumerate(pairs)]
        content = sha256_file(self.root / "MANIFEST.sha256") if manifest else found
        self.content_hash = sha256_json({"content": content, "split": split, "size": self.size, "files": self.files})

    def pipeline(self) -> dict[str, Any]:
        """Everything that decides the pixels, with the library that decodes and resizes."""
        return super().pipeline() | {"decoder": decoder()}

    def stored(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.pixels[ids], self.maps[ids]

    def __len__(self) -> int:
        return len(self.files)

    def _load(self, index: int, image: str, label: str, manifest: Mapping[str, str]) -> list[str]:
        """Read a pair of files into memory; returns their sha256."""
        height, width = self.size
        picture, picture_hash = open_image(self.root / image, manifest.get(image))
        labels, labels_hash = open_image(self.root / label, manifest.get(label))
        check_map(self.root / label, labels, picture)
        self.pixels[index] = np.asarray(picture.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
        values = np.asarray(labels.resize((width, height), Image.Resampling.NEAREST))
        self.maps[index] = np.where(values == VOID, IGNORE, values)
        return [picture_hash, labels_hash]


def find_pairs(root: Path, split: str) -> list[tuple[str, str]]:
    """Paths below `root` of the images of a split and of their label maps, in the order of samples.

    Raises: DataMissing naming the file that lacks the other one.
    """
    images = {p.stem: p for kind in ("*.png", "*.jpg") for p in (root / split / "images").glob(kind)}
    labels = {p.stem: p for p in (root / split / "labels").glob("*.png")}
    if not images:
        raise DataMissing(f"{root / split / 'images'} has no .jpg or .png; {ADVICE}")
    for name in sorted(images.keys() ^ labels.keys()):
        lonely, other = (images[name], "labels") if name in images else (labels[name], "images")
        raise DataMissing(f"{lonely} has no partner in {root / split / other}; complete the folder, or remove it")
    pairs = [(images[name].relative_to(root).as_posix(), labels[name].relative_to(root).as_posix()) for name in images]
    return sorted(pairs, key=lambda pair: hashlib.sha256(pair[0].encode()).digest())


def check_listed(root: Path, split: str, manifest: Mapping[str, str], pairs: Sequence[tuple[str, str]]) -> None:
    """Raises: CorruptFile when MANIFEST.sha256 does not list exactly these files of the split."""
    listed = {name for name in manifest if name.startswith(f"{split}/")}
    differ = sorted(listed.symmetric_difference(name for pair in pairs for name in pair))
    if differ:
        reason = f"MANIFEST.sha256 and the folder differ in {len(differ)} files"
        raise damaged(root / differ[0], reason, manifest.get(differ[0]))


def check_meta(root: Path) -> None:
    """Raises: CorruptFile, or ConfigError when meta.json says that the labels are of another version of CamVid."""
    meta = read_meta(root)
    if meta is None:
        return
    names, colours = [name for name, _ in CLASSES], [list(colour) for _, colour in CLASSES]
    for key, wanted in (("classes", names), ("palette_rgb", colours), ("void_index", VOID)):
        if not isinstance(meta, dict) or meta.get(key) != wanted:
            raise ConfigError(
                f"{root / 'meta.json'}: {key} is not {wanted}; set root to the 11-class version of CamVid"
            )
    check_manifest(root, meta)


def check_map(path: Path, labels: Image.Image, image: Image.Image) -> None:
    """Raises: CorruptFile when a label map has another size than its image, several channels, or a wrong value."""
    if labels.size != image.size:
        sizes = "{} × {}, its image {} × {}".format(*labels.size, *image.size)
        raise damaged(path, f"label map is {sizes} pixels")
    if labels.mode not in ("L", "P"):
        raise damaged(path, f"label map has mode {labels.mode}; one byte a pixel is wanted")
    wrong = np.argwhere(np.asarray(labels) > VOID)
    if len(wrong):
        row, column = wrong[0].tolist()
        where = f"label {np.asarray(labels)[row, column]} at row {row}, column {column}"
        raise damaged(path, f"{where} is not in 0 to {VOID - 1}, nor {VOID} for void")
