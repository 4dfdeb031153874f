"""BCCD: microscope images of blood smears with boxes of red cells, white cells and platelets."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from limbeck.detection.data._coco_json import CocoImage, read_coco
from limbeck.detection.data.augment import ScaleCropFlip
from limbeck.detection.data.base import DetectionDataset, Objects, open_picture
from limbeck.engine.augment import parse_augment
from limbeck.engine.data import check_limit, checked_size
from limbeck.engine.data_files import (
    check_manifest,
    damaged,
    decoder,
    find_folder,
    read_manifest,
    read_meta,
    usual_folders,
)
from limbeck.engine.registry import DATASETS
from limbeck.engine.weights import sha256_file, sha256_json
from limbeck.errors import DataMissing

CLASSES = (("RBC", (220, 20, 60)), ("WBC", (0, 82, 155)), ("Platelets", (255, 190, 0)))
ADVICE = (
    "put its images and annotations/{train,val,test}.json, in COCO's format, into $LIMBECK_DATA/bccd, "
    "or set root to the folder that has them"
)


@DATASETS.register_module()
class BCCD(DetectionDataset):
    """Blood cells (3, H, W), 3 classes: 205 / 87 / 72 images of 640×480. All of a split is kept in memory.

    Files are `annotations/<split>.json`, in COCO's format, and the images in `images/` that it names. Looked for in
    `root`; without it in $LIMBECK_DATA/bccd and in the cache folder. Images are resized once, averaging where they
    shrink, and boxes with them. Boxes that reach over the image are cut; images without boxes stay. Grey images, and
    those with transparency, are converted to RGB. Samples are ordered by the sha256 of their path, so that the first n
    are a fair draw. Many red cells have no box, so their AP saturates low.

    Args:
        split: 'train', 'val' or 'test'.
        root: folder with images and annotations.
        size: height and width; figures at another size do not compare.
        augment: options of `ScaleCropFlip`, `dict()` for its defaults; None for none.
        views: augmented versions of a sample; 0 makes new ones every epoch.
        seed: of the augmentation.
        limit: takes the first samples of that order only; the others are not decoded.
    Raises: DataMissing, CorruptFile, ConfigError.

    Attributes:
        files: paths of the images below root, in the order of samples.
        pixels: uint8 (N, H, W, 3).
        objects: boxes and labels of each image, at `size`.
    """

    name = "bccd"

    def __init__(
        self,
        split: str,
        root: str | None = None,
        size: Sequence[int] = (192, 256),
        augment: Mapping[str, Any] | None = None,
        views: int = 1,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        super().__init__(split, augment=parse_augment(ScaleCropFlip, augment), views=views, seed=seed)
        self.size = checked_size(size, self.name)
        self.classes = [name for name, _ in CLASSES]
        self.palette = [colour for _, colour in CLASSES]
        labels = f"annotations/{split}.json"
        self.root = find_folder(self.name, usual_folders(self.name, root), ["images", labels], ADVICE)
        check_manifest(self.root, read_meta(self.root))
        manifest = read_manifest(self.root)
        listed = read_coco(self.root / labels, self.classes, manifest.get(labels))
        self.category_ids = listed.category_ids
        images = in_order(self.root / labels, listed.images)
        images = images[: check_limit(limit, len(images), self.name)]
        self.image_ids = [image.id for image in images]
        self.files = [f"images/{image.file_name}" for image in images]
        self.pixels = np.empty((len(images), *self.size, 3), np.uint8)
        self.objects: list[Objects] = []
        found = [self._load(index, image, manifest) for index, image in enumerate(images)]
        content = sha256_file(self.root / "MANIFEST.sha256") if manifest else [listed.sha256, *found]
        self._factors = np.array([self._factor(image) for image in images])
        self.content_hash = sha256_json({"content": content, "split": split, "size": self.size, "files": self.files})

    def pipeline(self) -> dict[str, Any]:
        """Everything that decides the pixels, with the library that decodes and resizes."""
        return super().pipeline() | {"size": list(self.size), "decoder": decoder()}

    def stored(self, sample: int) -> tuple[np.ndarray, Objects]:
        return self.pixels[sample], self.objects[sample]

    def _scales(self, ids: np.ndarray) -> np.ndarray:
        return self._factors[ids]

    def __len__(self) -> int:
        return len(self.files)

    def _factor(self, image: CocoImage) -> tuple[float, float]:
        return self.size[1] / image.size[0], self.size[0] / image.size[1]

    def _load(self, index: int, image: CocoImage, manifest: Mapping[str, str]) -> str:
        """Read an image into memory, and its objects; returns the file's sha256."""
        path, expected = self.root / self.files[index], manifest.get(self.files[index])
        if manifest and expected is None:
            raise damaged(path, "is not listed in MANIFEST.sha256, which lists the others")
        picture, found = open_picture(path, image.size, expected)
        picture = picture.resize((self.size[1], self.size[0]), Image.Resampling.BILINEAR)
        self.pixels[index] = np.asarray(picture)
        self.objects.append(image.objects.moved(self._factor(image)).clipped(self.size))  # rounding may step over
        return found


def in_order(path: Path, images: Sequence[CocoImage]) -> list[CocoImage]:
    """Images in the order of samples. Raises: DataMissing when there is none."""
    if not images:
        raise DataMissing(f"{path} lists no images; {ADVICE}")
    return sorted(images, key=lambda image: hashlib.sha256(f"images/{image.file_name}".encode()).digest())
