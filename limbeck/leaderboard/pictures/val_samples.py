"""Samples of a record's validation split for a picture: drawn at random with a fixed seed, from the very same data."""

from __future__ import annotations

from typing import Any

import numpy as np

from limbeck.engine.config import RunConfig, parse
from limbeck.engine.evaluate import build_dataset
from limbeck.engine.record import RunRecord
from limbeck.errors import ConfigError
from limbeck.leaderboard.pictures.plans import DRAW_SEED
from limbeck.leaderboard.pictures.splits import check_split


def val_samples(record: RunRecord, count: int, *, spare: int = 0) -> tuple[RunConfig, Any, list[int]]:
    """A record's config, its validation split, and `count` samples of it.

    Args:
        spare: as many further samples, or fewer where the split has no more.
    Raises: ConfigError for a count that the split does not have; CorruptFile when it is not the record's; DataMissing.
    """
    run = parse(RunConfig, dict(record.config), f"the config of {record.id}")
    dataset = build_dataset(run.data, "val")
    check_split(record, "validation", dataset.content_hash, record.data.val_hash)
    if not 1 <= count <= len(dataset):
        raise ConfigError(f"--count {count}: the validation split has {len(dataset)} images; ask for 1 to that many")
    return run, dataset, np.random.default_rng(DRAW_SEED).permutation(len(dataset))[: count + spare].tolist()
