"""A folder of images that nobody has labelled yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.engine.data import UNLABELLED
from limbeck.engine.data_files import remembered_sha256
from limbeck.engine.registry import DATASETS
from limbeck.engine.weights import sha256_json
from limbeck.errors import ConfigError, DataMissing
from limbeck.vision.data.folder import find_root, is_image
from limbeck.vision.data.photos import Photos, Scan


@DATASETS.register_module()
class UnlabelledFolder(Photos):
    """All images below a folder, whatever its sub-folders, with the label -1: the pool of active learning.

    Args:
        root: the folder; a name below $LIMBECK_DATA works too.
        split: as other data sets have it; the images are the same in each.
        classes: names of what the images may show, in the order of labels; two or more.
        size, crop_pct, augment, views, seed, limit, in_memory: see `Photos`.
    Raises: DataMissing for a folder without images; ConfigError for class names that are too few, empty or twice.
    """

    name = "unlabelled-folder"

    def __init__(
        self,
        root: str,
        split: str,
        classes: Sequence[str],
        size: int = 224,
        crop_pct: float = 1.0,
        augment: Mapping[str, Any] | None = None,
        views: int = 0,
        seed: int = 0,
        limit: int | None = None,
        in_memory: bool = False,
    ) -> None:
        self._classes = [str(name).strip() for name in classes]
        if len(self._classes) < 2 or not all(self._classes) or len(set(self._classes)) < len(self._classes):
            raise ConfigError(f"classes of {root} are two different names or more, none empty; got {list(classes)}")
        super().__init__(
            find_root(root),
            split,
            size=size,
            crop_pct=crop_pct,
            augment=augment,
            views=views,
            seed=seed,
            limit=limit,
            in_memory=in_memory,
        )

    def scan(self, split: str) -> Scan:
        paths = sorted(p for p in Path(self.root).rglob("*") if p.is_file() and is_image(p.name))
        files = [path.relative_to(self.root).as_posix() for path in paths]
        if not files:
            raise DataMissing(f"{self.root} has no images; name another root")
        content = sha256_json([(name, remembered_sha256(path)) for name, path in zip(files, paths)])
        return Scan(self._classes, files, [UNLABELLED] * len(files), content)
