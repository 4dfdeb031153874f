"""Coreset: greedy k-centre on the student's features (Sener & Savarese, arXiv 1708.00489)."""

from __future__ import annotations

import numpy as np

from limbeck.engine.registry import STRATEGIES
from limbeck.engine.selection import Pool, Progress, Strategy
from limbeck.multimodal.vlm.strategies._k_centre import Euclidean, greedy_k_centre, squared_norms


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows (B, d) divided by their L2 norms; a row of zeros stays."""
    norms = np.sqrt(squared_norms(rows))
    return rows / np.where(norms > 0, norms, 1)[:, None]


@STRATEGIES.register_module()
class Coreset(Strategy):
    """Farthest first by 1 − cosine of features (N, d); centres start as the labelled images. Ties go to the lowest id.

    As in ActiveKD (arXiv 2506.00910) features are L2-normalised, n(f). Of unit vectors ‖a − b‖² = 2 (1 − a·b), so the
    L2 distance that is worked out here gives the same order, and keeps its precision near 0. A feature vector of zeros
    is taken as the point 0, at distance 1 of all others.
    """

    needs = frozenset({"features"})

    def pick(self, pool: Pool, budget: int, rng: np.random.Generator, progress: Progress) -> np.ndarray:
        assert pool.features is not None
        return greedy_k_centre(Euclidean(pool.features, unit), pool.unlabelled, pool.labelled, budget, progress)[0]
