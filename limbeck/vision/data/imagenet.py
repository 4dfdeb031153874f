"""ImageNet-1k (ILSVRC 2012, arXiv 1409.0575) and Tiny ImageNet, in the layouts that their archives unpack to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.engine.data_files import damaged, find_folder, usual_folders
from limbeck.engine.registry import DATASETS
from limbeck.errors import ConfigError, DataMissing
from limbeck.vision.data.folder import class_files, class_names, listed_content, sizes_content
from limbeck.vision.data.photos import Photos, Scan


def read_class_names(path: Path) -> dict[str, str]:
    """WordNet id → name, from lines of both with a tab between, or from a JSON object.

    Raises: ConfigError when there is no such file, or it holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            found: Any = json.loads(text)
        else:
            found = dict(line.split("\t", 1) for line in text.splitlines() if line.strip())
    except OSError as error:
        raise ConfigError(f"names: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"names: {path} has no lines of a WordNet id, a tab and a name ({error})") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise ConfigError(f"names: {path} is no JSON object of WordNet id to name")
    return {wnid.strip(): name.strip() for wnid, name in found.items()}


class _WordNetPhotos(Photos):
    """Classes in folders named by WordNet id; val is held out from train, test is the official validation set.

    The content hash is of every path and file size, or MANIFEST.sha256's where the folder has one. No image is opened
    before it is asked for.

    Args:
        split: 'train', 'val' or 'test'.
        root: the folder with train and val.
        size: side of the images in pixels.
        crop_pct: share of the resized image's side that the centre crop keeps.
        augment: `dict(scale=(0.35, 1.0), ratio=(3/4, 4/3), flip=True)` crops a random part, all of them optional;
            `dict(type='ShiftFlip', pad=8, flip=True)` shifts the centre crop; None for none.
        views: augmented versions of a sample; 0 makes new ones every epoch.
        seed: of the augmentation.
        limit: takes the first samples only, in the order of the sha256 of their paths.
        in_memory: decode every file once, when the data set is made, and keep the pixels.
        val_per_class: images of each class that are held out from train as val.
        names: file of class names, relative to the root or absolute; without it classes are named by WordNet id.
    Raises: DataMissing, CorruptFile, ConfigError.
    """

    folder: str
    default_size: int
    default_crop_pct: float

    def __init__(
        self,
        split: str,
        root: str | None = None,
        size: int | None = None,
        crop_pct: float | None = None,
        augment: Mapping[str, Any] | None = None,
        views: int = 0,
        seed: int = 0,
        limit: int | None = None,
        in_memory: bool = False,
        val_per_class: int = 50,
        names: str | None = None,
    ) -> None:
        if val_per_class < 1:
            raise ConfigError(f"val_per_class is positive; got {val_per_class}")
        self.val_per_class = val_per_class
        self.names = names
        super().__init__(
            self.find(root),
            split,
            size=self.default_size if size is None else size,
            crop_pct=self.default_crop_pct if crop_pct is None else crop_pct,
            augment=augment,
            views=views,
            seed=seed,
            limit=limit,
            in_memory=in_memory,
        )

    @classmethod
    def find(cls, root: str | None = None) -> Path:
        """The folder with train and val. Raises: DataMissing saying where to put it."""
        advice = f"put its train and val into $LIMBECK_DATA/{cls.folder}, or set root to the folder that has them"
        return find_folder(cls.name, usual_folders(cls.folder, root), ["train"], advice)

    def scan(self, split: str) -> Scan:
        part = "val" if split == "test" else "train"
        wnids = class_names(self.root / "train")
        if split == "test":
            found = self.official_val(wnids)
        else:
            found = {wnid: class_files(self.root, "train", wnid) for wnid in wnids}
        official = [file for files in found.values() for file in files]
        if not official:
            raise DataMissing(f"{self.root / part} has no images; complete it, or set root to another folder")
        content = listed_content(self.root, part, official) or sizes_content(self.root, sorted(official))
        if split != "test":
            found = {wnid: self._held_out(wnid, files, split) for wnid, files in found.items()}
        files = [file for wnid in wnids for file in found.get(wnid, ())]
        labels = [label for label, wnid in enumerate(wnids) for _ in found.get(wnid, ())]
        return Scan(self._named(wnids), files, labels, content)

    def official_val(self, wnids: Sequence[str]) -> dict[str, list[str]]:
        """WordNet id → paths of the official validation set; empty where there is none. Raises: DataMissing."""
        raise NotImplementedError

    def ranked(self, files: list[str]) -> list[str]:
        """A class's training files in the order whose last ones are held out."""
        raise NotImplementedError

    def _held_out(self, wnid: str, files: list[str], split: str) -> list[str]:
        cut = len(files) - self.val_per_class
        if cut < 1:
            has = f"{self.root / 'train' / wnid} has {len(files)} images"
            raise ConfigError(f"{has}, too few to hold out val_per_class={self.val_per_class} of them")
        ranked = self.ranked(files)
        return ranked[cut:] if split == "val" else ranked[:cut]

    def _named(self, wnids: Sequence[str]) -> list[str]:
        if self.names is None:
            return list(wnids)
        named = read_class_names(self.root / self.names)
        missing = [wnid for wnid in wnids if wnid not in named]
        if missing:
            raise ConfigError(f"names: {self.root / self.names} has no name for {missing[0]}")
        return [named[wnid] for wnid in wnids]


@DATASETS.register_module()
class ImageNet(_WordNetPhotos):
    """ILSVRC 2012: `train/<wnid>/*.JPEG` and `val/<wnid>/*.JPEG`; by default 224 pixels, the centre of 256.

    Of each class, the val_per_class training images with the highest sha256 of their path are val: 50,000 of 1,281,167.
    Looked for in `root`; without it in $LIMBECK_DATA/imagenet and in the cache folder.
    """

    name = "imagenet"
    folder = "imagenet"
    default_size = 224
    default_crop_pct = 0.875

    def official_val(self, wnids: Sequence[str]) -> dict[str, list[str]]:
        own = class_names(self.root / "val")
        unknown = sorted(set(own) - set(wnids))
        if unknown:
            raise ConfigError(f"{self.root / 'val'} has the class folder {unknown[0]!r}, which train lacks; remove it")
        return {wnid: class_files(self.root, "val", wnid) for wnid in own}

    def ranked(self, files: list[str]) -> list[str]:
        return sorted(files, key=lambda name: hashlib.sha256(name.encode()).digest())


@DATASETS.register_module()
class TinyImageNet(_WordNetPhotos):
    """200 classes at 64 pixels: `train/<wnid>/images/*.JPEG`, `val/images/*.JPEG` and `val/val_annotations.txt`.

    The last val_per_class training images of each class, by file name, are val: 90,000 / 10,000 / 10,000.
    Looked for in `root`; without it in $LIMBECK_DATA/tiny-imagenet-200 and in the cache folder. Its archive has class
    names: `names='words.txt'`.
    """

    name = "tiny-imagenet"
    folder = "tiny-imagenet-200"
    default_size = 64
    default_crop_pct = 1.0

    def official_val(self, wnids: Sequence[str]) -> dict[str, list[str]]:
        path = self.root / "val" / "val_annotations.txt"
        if not path.is_file():
            raise DataMissing(f"{path} is missing, so test has no labels; complete the folder, or set another root")
        known, found = set(wnids), {}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            fields = line.split("\t")
            if len(fields) < 2 or fields[1] not in known:
                raise damaged(path, f"line {number} names no file and class of train ({line[:60]!r})")
            file = f"val/images/{fields[0]}"
            if not (self.root / file).is_file():
                raise damaged(path, f"line {number} names {file}, which is missing")
            found.setdefault(fields[1], []).append(file)
        return found

    def ranked(self, files: list[str]) -> list[str]:
        return files
