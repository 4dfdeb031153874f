"""The ten small data sets of the few-shot line of work on CLIP, in the layout and splits of CoOp (arXiv 2109.01134).

Each folder has the images and, but for FGVC-Aircraft, whose own lists are taken, `split_zhou_<Name>.json`, a dict of
train, val and test with [path, label, class name] for each image. CoOp's DATASETS.md says where the parts come from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from limbeck.engine.data_files import damaged, find_folder, remembered_sha256, usual_folders
from limbeck.engine.registry import DATASETS
from limbeck.vision.data.photos import Photos, Scan

Listed = dict[str, list[tuple[str, int, str]]]  # split → (path below the images' folder, label, class name)


class FewShotPhotos(Photos):
    """RGB photographs (3, size, size) of one of the ten sets. Files are opened when they are asked for.

    Looked for in `root`; without it in $LIMBECK_DATA/<folder> and in the cache folder.

    Args:
        split: 'train', 'val' or 'test', of CoOp's fixed split.
        root: folder of the data set, or the folder that has it.
        size, crop_pct, augment, views, seed, limit, in_memory: see `Photos`.
    Raises: DataMissing, CorruptFile, ConfigError.
    """

    folder: ClassVar[str]
    images_in: ClassVar[str]  # below the folder
    listed_in: ClassVar[str]

    def __init__(
        self,
        split: str,
        root: str | None = None,
        size: int = 224,
        crop_pct: float = 1.0,
        augment: Mapping[str, Any] | None = None,
        views: int = 0,
        seed: int = 0,
        limit: int | None = None,
        in_memory: bool = False,
    ) -> None:
        usual = usual_folders(self.folder, root)
        looked = [place for given in usual for place in (given, given / self.folder)]
        advice = f"put {self.listed_in} and {self.images_in} into $LIMBECK_DATA/{self.folder}, as CoOp lays them out"
        super().__init__(
            find_folder(self.name, looked, [self.listed_in], advice),
            split,
            size=size,
            crop_pct=crop_pct,
            augment=augment,
            views=views,
            seed=seed,
            limit=limit,
            in_memory=in_memory,
        )

    def listed(self) -> Listed:
        """Every image of the three splits. Raises: CorruptFile."""
        path = self.root / self.listed_in
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            return {
                split: [(str(file), int(label), str(name)) for file, label, name in raw[split]]
                for split in ("train", "val", "test")
            }
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(path, f"not a list of train, val and test ({error!r})") from error

    def scan(self, split: str) -> Scan:
        found = self.listed()
        path = self.root / self.listed_in
        names: dict[int, str] = {}
        for _, label, name in (row for rows in found.values() for row in rows):
            if names.setdefault(label, name) != name:
                raise damaged(path, f"label {label} is both {names[label]!r} and {name!r}")
        if sorted(names) != list(range(len(names))):
            raise damaged(path, f"labels are not 0 to {len(names) - 1}")
        rows = found[split]
        if not rows:
            raise damaged(path, f"split {split!r} is empty")
        files = [f"{self.images_in}/{file}" if self.images_in else file for file, _, _ in rows]
        content = {"list": remembered_sha256(path), "images": len(files)}  # of some 100,000 files in all, not read here
        classes = [names[label].replace("_", " ") for label in range(len(names))]
        return Scan(classes, files, [label for _, label, _ in rows], content)


def _add(kind: str, name: str, folder: str, images_in: str, listed_in: str, images: str) -> None:
    body = dict(name=name, folder=folder, images_in=images_in, listed_in=listed_in, __doc__=images)
    DATASETS.register_module(name=kind, module=type(kind, (FewShotPhotos,), body))


for _row in (
    ("Caltech101", "caltech101", "caltech-101", "101_ObjectCategories", "Caltech101", "100 kinds of objects."),
    ("DTD", "dtd", "dtd", "images", "DescribableTextures", "47 kinds of textures (arXiv 1311.3618)."),
    ("EuroSAT", "eurosat", "eurosat", "2750", "EuroSAT", "10 kinds of land, seen by satellite (arXiv 1709.00029)."),
    ("Food101", "food101", "food-101", "images", "Food101", "101 kinds of food."),
    ("Flowers102", "flowers102", "oxford_flowers", "jpg", "OxfordFlowers", "102 kinds of flowers."),
    ("OxfordPets", "oxford-pets", "oxford_pets", "images", "OxfordPets", "37 breeds of cats and dogs."),
    ("StanfordCars", "stanford-cars", "stanford_cars", "", "StanfordCars", "196 models of cars."),
    ("SUN397", "sun397", "sun397", "SUN397", "SUN397", "397 kinds of scenes."),
    ("UCF101", "ucf101", "ucf101", "UCF-101-midframes", "UCF101", "101 actions, the middle frame of each video."),
):
    _add(*_row[:4], f"split_zhou_{_row[4]}.json", _row[5])


@DATASETS.register_module()
class FGVCAircraft(FewShotPhotos):
    """100 variants of aircraft (arXiv 1306.5151), by the lists `images_variant_<split>.txt` that come with them."""

    name = "fgvc-aircraft"
    folder = "fgvc_aircraft"
    images_in = "images"
    listed_in = "variants.txt"

    def listed(self) -> Listed:
        classes = {name: label for label, name in enumerate(_lines(self.root / self.listed_in))}
        found: Listed = {}
        for split in ("train", "val", "test"):
            path = self.root / f"images_variant_{split}.txt"
            rows = [line.partition(" ") for line in _lines(path)]
            unknown = [name for _, _, name in rows if name not in classes]
            if unknown:
                raise damaged(path, f"variant {unknown[0]!r} is not in variants.txt")
            found[split] = [(f"{image}.jpg", classes[name], name) for image, _, name in rows]
        return found


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise damaged(path, "there is no such list")
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
