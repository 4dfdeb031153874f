"""Digits: 1,797 real handwritten 8 × 8 digits, shipped in scikit-learn; nothing to download."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from limbeck.engine.registry import DATASETS
from limbeck.vision.data.augment import sample_uniforms
from limbeck.vision.data.base import ArrayDataset

SHARES = {"train": 0.60, "val": 0.15, "test": 0.25}
_SPLIT_SEED = 20  # decides the split for good: another number makes another benchmark


def split_indices(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Indices of train, val and test, sorted; each class is divided 60 / 15 / 25 by a hash of the index."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in SHARES}
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = members[np.argsort(sample_uniforms(_SPLIT_SEED, 0, members, 1)[:, 0], kind="stable")]
        cuts = np.round(np.cumsum(list(SHARES.values()))[:-1] * len(order)).astype(int)
        for name, part in zip(SHARES, np.split(order, cuts)):
            parts[name].append(part)
    return {name: np.sort(np.concatenate(found)) for name, found in parts.items()}


@DATASETS.register_module()
class Digits(ArrayDataset):
    """Handwritten digits (1, 8, 8): 1,078 / 269 / 450 for train, val and test, stratified by a fixed seed.

    Args:
        split: 'train', 'val' or 'test'.
        augment: `dict(pad=1)` shifts by up to a pixel; None for none. Digits are not to be flipped.
        views: augmented versions of a sample; 0 makes new ones every epoch.
        seed: of the augmentation; the split does not depend on it.
        limit: takes the first samples only.
    """

    name = "digits"

    def __init__(
        self,
        split: str,
        augment: Mapping[str, Any] | None = None,
        views: int = 0,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        from sklearn.datasets import load_digits

        data: Any = load_digits()
        self.classes = [str(name) for name in data.target_names]
        chosen = split_indices(data.target).get(split, np.arange(0))
        pixels = np.round(data.images[chosen, None] * (255 / 16)).astype(np.uint8)
        super().__init__(split, pixels, data.target[chosen], augment=augment, views=views, seed=seed, limit=limit)
