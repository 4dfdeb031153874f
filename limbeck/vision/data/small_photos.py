"""Small photograph collections: five kinds of flowers at 128 pixels, and ten textures of DTD (arXiv 1311.3618)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.engine.data_files import find_folder, usual_folders
from limbeck.engine.registry import DATASETS
from limbeck.vision.data.folder import ImageFolder


class SmallPhotos(ImageFolder):
    """An `ImageFolder` of a known name, by default kept in memory after one decoding.

    Looked for in `root`; without it in $LIMBECK_DATA/<name> and in the cache folder.

    Args:
        split: 'train', 'val' or 'test'.
        root: folder with train, val and test, each with one folder a class.
        size, crop_pct, augment, views, seed, limit, in_memory: see ImageFolder.
    Raises: DataMissing, CorruptFile, ConfigError.
    """

    def __init__(
        self,
        split: str,
        root: str | None = None,
        size: int = 128,
        crop_pct: float = 1.0,
        augment: Mapping[str, Any] | None = None,
        views: int = 0,
        seed: int = 0,
        limit: int | None = None,
        in_memory: bool = True,
    ) -> None:
        super().__init__(root, split, size, crop_pct, augment, views, seed, limit, in_memory)  # type: ignore[arg-type]

    def find(self, root: str | None) -> Path:
        return find_small(self.name, root)


def find_small(name: str, root: str | None = None) -> Path:
    """The folder of 'flowers5' or 'dtd10'. Raises: DataMissing saying where to put it."""
    advice = f"put its folders train, val and test into $LIMBECK_DATA/{name}, or set root to the folder that has them"
    return find_folder(name, usual_folders(name, root), ["train"], advice)


@DATASETS.register_module()
class Flowers5(SmallPhotos):
    """Daisy, dandelion, rose, sunflower and tulip: 3,023 / 427 / 857 photographs (3, size, size), 128 × 128 as stored.

    A few per cent of the labels are wrong, and the squares are squeezed. Arguments as of SmallPhotos.
    """

    name = "flowers5"


@DATASETS.register_module()
class DTD10(SmallPhotos):
    """Ten of the 47 classes of the Describable Textures Dataset: 612 / 194 / 394 photographs (3, size, size).

    The shorter side is 160 as stored. The split is not one of DTD's own, so published figures do not compare.
    Arguments as of SmallPhotos.
    """

    name = "dtd10"

    def __init__(self, split: str, root: str | None = None, size: int = 160, **options: Any) -> None:
        super().__init__(split, root, size, **options)
