"""Digits: 1,797 real handwritten 8 × 8 digits, shipped in scikit-learn; nothing to download."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limbeck.engine.digits import read_digits
from limbeck.engine.registry import DATASETS
from limbeck.vision.data.base import ArrayDataset


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
        pixels, labels = read_digits(split)
        self.classes = [str(digit) for digit in range(10)]
        super().__init__(split, pixels[:, None], labels, augment=augment, views=views, seed=seed, limit=limit)
