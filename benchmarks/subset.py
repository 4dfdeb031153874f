"""The first samples of a split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limbeck.engine.registry import DATASETS, accepted_keys


def first(split: Mapping[str, Any], count: int) -> dict[str, Any]:
    """A data set's config with its first samples only: by `limit`, or by `count` where scenes are made."""
    keys = accepted_keys(DATASETS.lookup(str(split["type"]))) or ()
    return {**split, "limit" if "limit" in keys else "count": count}
