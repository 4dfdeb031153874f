"""Image folders: train, val and test subfolders, each with one folder a class."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image, UnidentifiedImageError
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from limbeck.engine.registry import DATASETS
from limbeck.engine.weights import sha256_file, sha256_json
from limbeck.errors import ConfigError, DataMissing
from limbeck.vision.data._files import damaged, read_manifest, remembered_sha256, shared_data
from limbeck.vision.data.augment import CropFlip, parse_augment, sample_uniforms
from limbeck.vision.data.base import VisionDataset, check_limit

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
TRIES = 10  # of a crop that fits, as torchvision's RandomResizedCrop


def find_root(root: str | Path) -> Path:
    """The folder itself, or the one of that name below $LIMBECK_DATA. Raises: DataMissing."""
    shared = shared_data()
    looked = [Path(root)] if shared is None else [Path(root), shared / root]
    for folder in looked:
        if folder.is_dir():
            return folder
    raise DataMissing(f"no image folder {' or '.join(str(f) for f in looked)}; name another root, or set LIMBECK_DATA")


@DATASETS.register_module()
class ImageFolder(VisionDataset):
    """RGB photographs (3, size, size) from `root/<split>/<class>/<file>`; labels follow the alphabet of the classes.

    Without augmentation the shorter side is resized to `size / crop_pct` and the centre is cut out.
    Samples are ordered by the sha256 of their path, so that the first n are a fair draw from all classes.

    Args:
        root: folder with train, val and test; a name below $LIMBECK_DATA works too.
        split: 'train', 'val' or 'test'.
        size: side of the images in pixels.
        crop_pct: share of the resized image's side that the centre crop keeps.
        augment: `dict(scale=(0.35, 1.0), ratio=(3/4, 4/3), flip=True)`, all of them optional; None for none.
        views: augmented versions of a sample; 0 makes new ones every epoch.
        seed: of the augmentation.
        limit: takes the first samples of that order only.
    Raises: DataMissing, CorruptFile.
    """

    def __init__(
        self,
        root: str,
        split: str,
        size: int = 224,
        crop_pct: float = 1.0,
        augment: Mapping[str, Any] | None = None,
        views: int = 0,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        self.root = find_root(root)
        self.name = self.root.resolve().name
        super().__init__(split, views=views, seed=seed, augment=parse_augment(CropFlip, augment))
        if size < 1 or not 0 < crop_pct <= 1:
            raise ConfigError(f"size is positive and crop_pct in (0, 1]; got {size} and {crop_pct}")
        self.size = size
        self.crop_pct = crop_pct
        folder = self.root / split
        self.classes = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
        files = sorted(p.relative_to(self.root).as_posix() for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not self.classes or not files:
            raise DataMissing(f"{folder} has no folders of images, one for each class; name another root or split")
        content = self._content(files)
        files.sort(key=lambda name: hashlib.sha256(name.encode()).digest())
        self.files = files[: check_limit(limit, len(files), self.name)]
        index = {name: label for label, name in enumerate(self.classes)}
        self.labels = np.array([index[name.split("/")[1]] for name in self.files], np.int64)
        self.content_hash = sha256_json({"content": content, "split": split, "files": self.files})

    def _content(self, files: list[str]) -> str:
        """The manifest's hash, or that of every path and file; the manifest must list exactly the files found."""
        manifest = read_manifest(self.root)
        if not manifest:
            return sha256_json([(name, remembered_sha256(self.root / name)) for name in files])
        listed = {
            name for name in manifest if name.startswith(f"{self.split}/") and Path(name).suffix.lower() in SUFFIXES
        }
        differ = sorted(listed.symmetric_difference(files))
        if differ:
            raise damaged(
                self.root / differ[0],
                f"MANIFEST.sha256 and the folder differ in {len(differ)} files",
                manifest.get(differ[0]),
            )
        return sha256_file(self.root / "MANIFEST.sha256")

    def pipeline(self) -> dict[str, Any]:
        """Everything that decides the pixels, with the libraries that decode and resize."""
        versions = f"pillow {PIL.__version__}, torchvision {torchvision.__version__}"
        return super().pipeline() | {"size": self.size, "crop_pct": self.crop_pct, "decoder": versions}

    def images(self, ids: np.ndarray) -> np.ndarray:
        return np.stack([self._image(int(i)) for i in ids])

    def _image(self, sample: int) -> np.ndarray:
        path = self.root / self.files[sample]
        try:
            with Image.open(path) as opened:
                pixels = torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1)
        except (
            UnidentifiedImageError,
            OSError,
            SyntaxError,
        ) as error:  # Pillow reports some broken PNGs as SyntaxError
            raise damaged(
                path, f"not a whole image ({error})", read_manifest(self.root).get(self.files[sample])
            ) from error
        mode = InterpolationMode.BICUBIC
        if self.augment is None:
            side = round(self.size / self.crop_pct)
            return TF.center_crop(TF.resize(pixels, [side], mode, antialias=True), [self.size, self.size]).numpy()
        dice = sample_uniforms(self.seed, self.view, np.array([sample]), 4 * TRIES + 1)[0]
        top, left, height, width = self.augment.box(*pixels.shape[1:], dice[:-1])
        out = TF.resized_crop(pixels, top, left, height, width, [self.size, self.size], mode, antialias=True)
        return (TF.horizontal_flip(out) if self.augment.flip and dice[-1] < 0.5 else out).numpy()
