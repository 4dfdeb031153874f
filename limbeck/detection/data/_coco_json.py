"""Annotation files in COCO's format, every entry of which is checked before anything is trained on it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.detection.data.base import Objects
from limbeck.engine.data_files import damaged
from limbeck.errors import CorruptFile, DataMissing


@dataclass(frozen=True, slots=True)
class CocoImage:
    """An image of an annotation file: its id, file name, width and height in pixels, and the objects in it."""

    id: int
    file_name: str
    size: tuple[int, int]
    objects: Objects


@dataclass(frozen=True, slots=True)
class CocoFile:
    """What an annotation file holds: images in its order, category ids in the order of labels, and its sha256."""

    images: list[CocoImage]
    category_ids: list[int]
    sha256: str


def read_coco(path: Path, classes: Sequence[str], expected: str | None = None) -> CocoFile:
    """The images and boxes of an annotation file; boxes that reach over the image are cut at its borders.

    Args:
        classes: names of its categories; a label is the index of one.
        expected: sha256 that the file has to have, or None.
    Raises: DataMissing; CorruptFile naming the entry when the file is not as COCO's are, an id or a file name comes
        twice, a category is none of `classes`, or a box has no area or lies outside its image.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataMissing(f"{path} cannot be read: {error.strerror}; complete the folder") from error
    sha256 = hashlib.sha256(data).hexdigest()
    if expected not in (None, sha256):
        raise damaged(path, "not the file that MANIFEST.sha256 lists", expected)
    try:
        content = json.loads(data)
    except ValueError as error:
        raise damaged(path, f"not a JSON file ({error})", expected) from error
    checker = _Checker(path, expected)
    labels = checker.labels(checker.section(content, "categories"), classes)
    images = checker.images(checker.section(content, "images"))
    objects = checker.objects(checker.section(content, "annotations"), images, labels)
    found = [
        CocoImage(key, image["file_name"], (image["width"], image["height"]), objects[key])
        for key, image in images.items()
    ]
    return CocoFile(found, [key for key, _ in sorted(labels.items(), key=lambda pair: pair[1])], sha256)


@dataclass(frozen=True, slots=True)
class _Checker:
    """Reads the sections of one file; every error names the file and the entry."""

    path: Path
    expected: str | None

    def wrong(self, reason: str) -> CorruptFile:
        return damaged(self.path, reason, self.expected)

    def section(self, content: Any, name: str) -> dict[int, dict[str, Any]]:
        """Entries of a list of the file by their ids."""
        entries = content.get(name) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise self.wrong(f"has no list of {name}; it is no annotation file of COCO's format")
        found: dict[int, dict[str, Any]] = {}
        for index, entry in enumerate(entries):
            key = entry.get("id") if isinstance(entry, dict) else None
            if not isinstance(key, int):
                raise self.wrong(f"entry {index} of {name} has no id")
            if key in found:
                raise self.wrong(f"id {key} comes twice among the {name}")
            found[key] = entry
        return found

    def labels(self, categories: Mapping[int, Mapping[str, Any]], classes: Sequence[str]) -> dict[int, int]:
        """Category id → label."""
        names = {key: category.get("name") for key, category in categories.items()}
        if sorted(map(str, names.values())) != sorted(classes):
            raise self.wrong(f"categories are {sorted(map(str, names.values()))}, not {sorted(classes)}")
        return {key: classes.index(str(name)) for key, name in names.items()}

    def images(self, images: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
        seen: dict[str, int] = {}
        for key, image in images.items():
            name = image.get("file_name")
            if not isinstance(name, str) or not name:
                raise self.wrong(f"image {key} has no file_name")
            if name in seen:
                raise self.wrong(f"images {seen[name]} and {key} are the same file {name}")
            seen[name] = key
            if not all(isinstance(image.get(side), int) and image[side] >= 1 for side in ("width", "height")):
                raise self.wrong(f"image {key} has no width and height of at least 1 pixel")
        return images

    def objects(
        self,
        annotations: Mapping[int, Mapping[str, Any]],
        images: Mapping[int, Mapping[str, Any]],
        labels: Mapping[int, int],
    ) -> dict[int, Objects]:
        """Image id → its objects in the order of the file."""
        rows: dict[int, list[tuple[Sequence[float], int, bool]]] = {key: [] for key in images}
        for key, annotation in annotations.items():
            owner, category = annotation.get("image_id"), annotation.get("category_id")
            if not isinstance(owner, int) or owner not in images:
                raise self.wrong(f"annotation {key} is of image {owner}, which the file does not list")
            if not isinstance(category, int) or category not in labels:
                raise self.wrong(f"annotation {key} has category {category}, which is none of {sorted(labels)}")
            image = images[owner]
            box = self.box(key, annotation.get("bbox"), image["width"], image["height"])
            rows[owner].append((box, labels[category], bool(annotation.get("iscrowd", 0))))
        return {
            key: Objects.of([box for box, _, _ in found], [label for _, label, _ in found], [c for _, _, c in found])
            for key, found in rows.items()
        }

    def box(self, key: int, box: Any, width: int, height: int) -> Sequence[float]:
        """x1 y1 x2 y2 within the image, of COCO's x y w h."""
        numbers = isinstance(box, list) and [isinstance(n, (int, float)) and math.isfinite(n) for n in box]
        if numbers != [True] * 4:
            raise self.wrong(f"annotation {key}: box {box} is not four numbers x, y, width, height")
        x, y, w, h = box
        if w <= 0 or h <= 0:
            raise self.wrong(f"annotation {key}: box {box} has no area")
        found = [max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)]
        if found[0] >= found[2] or found[1] >= found[3]:
            raise self.wrong(f"annotation {key}: box {box} lies outside its image of {width} × {height} pixels")
        return found
