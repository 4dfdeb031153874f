"""What strategies share that rank images by a score of their own probabilities."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from limbeck.engine.selection import Pool, Progress, row_blocks


def unlabelled_rows(pool: Pool, of: Callable[[np.ndarray], np.ndarray], progress: Progress) -> np.ndarray:
    """One number of every unlabelled image, (U,) float64 in order of ids: `of` maps probabilities (B, K) to (B,)."""
    assert pool.probabilities is not None  # Strategy.choose has checked `needs`
    found = np.empty(len(pool.unlabelled))
    for where, block in row_blocks(pool.probabilities, pool.unlabelled):
        found[where] = of(block)
        progress(where.stop, len(found), "images")
    return found


def largest(pool: Pool, budget: int, score: Callable[[np.ndarray], np.ndarray], progress: Progress) -> np.ndarray:
    """Ids of the `budget` unlabelled images with the largest score, in falling order; ties go to the lowest id."""
    order = np.argsort(-unlabelled_rows(pool, score, progress), kind="stable")[:budget]
    progress(budget, budget, "picks")
    return pool.unlabelled[order]
