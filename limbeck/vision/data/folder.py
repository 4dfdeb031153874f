"""Image folders: train, val and test subfolders, each with one folder a class."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.engine.data_files import damaged, read_manifest, remembered_sha256, shared_data
from limbeck.engine.registry import DATASETS
from limbeck.engine.weights import sha256_file, sha256_json
from limbeck.errors import ConfigError, DataMissing
from limbeck.vision.data.photos import Photos, Scan

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


def find_root(root: str | Path) -> Path:
    """The folder itself, or the one of that name below $LIMBECK_DATA. Raises: DataMissing."""
    shared = shared_data()
    looked = [Path(root)] if shared is None else [Path(root), shared / root]
    for folder in looked:
        if folder.is_dir():
            return folder
    raise DataMissing(f"no image folder {' or '.join(str(f) for f in looked)}; name another root, or set LIMBECK_DATA")


def is_image(name: str) -> bool:
    """Whether a file's name ends like an image's."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def class_names(folder: Path) -> list[str]:
    """The class folders of a split, sorted; hidden folders are none. Empty where the split has no folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def class_files(root: Path, split: str, name: str) -> list[str]:
    """Paths below `root`, sorted, of all images of a class, also in folders inside its own; none is opened."""
    found = []
    for folder, _, files in os.walk(root / split / name):
        prefix = Path(folder).relative_to(root).as_posix()
        found += [f"{prefix}/{file}" for file in files if is_image(file)]
    return sorted(found)


def listed_content(root: Path, split: str, files: Sequence[str]) -> str | None:
    """The hash of MANIFEST.sha256, None where there is none.

    Raises: CorruptFile when it does not list exactly these images of the folder `split`.
    """
    manifest = read_manifest(root)
    if not manifest:
        return None
    listed = {name for name in manifest if name.startswith(f"{split}/") and is_image(name)}
    differ = sorted(listed.symmetric_difference(files))
    if differ:
        reason = f"MANIFEST.sha256 and the folder differ in {len(differ)} files"
        raise damaged(root / differ[0], reason, manifest.get(differ[0]))
    return sha256_file(root / "MANIFEST.sha256")


def sizes_content(root: Path, files: Sequence[str]) -> str:
    """The hash of every path and size in bytes: for data sets too large to read all of it at each start."""
    return sha256_json([(name, (root / name).stat().st_size) for name in files])


@DATASETS.register_module()
class ImageFolder(Photos):
    """RGB photographs (3, size, size) from `root/<split>/<class>/<file>`; labels follow the alphabet of the classes.

    Without augmentation the shorter side is resized to `size / crop_pct` and the centre is cut out.
    Samples are ordered by the sha256 of their path, so that the first n are a fair draw from all classes.
    Classes are those of train, where there is a train folder: a split may lack some, and has no others.

    Args:
        root: folder with train, val and test; a name below $LIMBECK_DATA works too.
        split: 'train', 'val' or 'test'.
        size: side of the images in pixels.
        crop_pct: share of the resized image's side that the centre crop keeps.
        augment: `dict(scale=(0.35, 1.0), ratio=(3/4, 4/3), flip=True)` crops a random part, all of them optional;
            `dict(type='ShiftFlip', pad=8, flip=True)` shifts the centre crop; None for none.
        views: augmented versions of a sample; 0 makes new ones every epoch.
        seed: of the augmentation.
        limit: takes the first samples of that order only.
        in_memory: decode every file once, when the data set is made, and keep the pixels.
    Raises: DataMissing, CorruptFile, ConfigError.
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
        in_memory: bool = False,
    ) -> None:
        folder = self.find(root)
        self.name = getattr(type(self), "name", None) or folder.resolve().name
        super().__init__(
            folder,
            split,
            size=size,
            crop_pct=crop_pct,
            augment=augment,
            views=views,
            seed=seed,
            limit=limit,
            in_memory=in_memory,
        )

    def find(self, root: Any) -> Path:
        """The folder with train, val and test. Raises: DataMissing."""
        return find_root(root)

    def scan(self, split: str) -> Scan:
        folder = self.root / split
        own = class_names(folder)
        names = {name: class_files(self.root, split, name) for name in own}
        files = [file for found in names.values() for file in found]
        if not files:
            raise DataMissing(f"{folder} has no folders of images, one for each class; name another root or split")
        classes = class_names(self.root / "train") or own
        unknown = sorted(set(own) - set(classes))
        if unknown:
            raise ConfigError(f"{folder} has the class folder {unknown[0]!r}, which train lacks; remove or rename it")
        content = listed_content(self.root, split, files)
        if content is None:
            content = sha256_json([(name, remembered_sha256(self.root / name)) for name in sorted(files)])
        labels = [label for label, name in enumerate(classes) for _ in names.get(name, ())]
        return Scan(classes, files, labels, content)
