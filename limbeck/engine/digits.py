"""The handwritten digits of scikit-learn and their split, for every task that is made of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from limbeck.engine.augment import sample_uniforms
from limbeck.engine.data import check_split

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


def read_digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The digits of a split: pixels uint8 (N, 8, 8), 0 paper and 255 ink, and labels int64 (N,).

    Raises: UnknownName for a split that there is none of.
    """
    check_split(split, "digits")
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    chosen = split_indices(data.target)[split]
    return np.round(data.images[chosen] * (255 / 16)).astype(np.uint8), data.target[chosen].astype(np.int64)
