"""Entropy: the images of whose class the student is least sure."""

from __future__ import annotations

import numpy as np

from limbeck.engine.registry import STRATEGIES
from limbeck.engine.selection import Pool, Progress, Strategy
from limbeck.multimodal.vlm.strategies._scores import largest


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """H(p) = −Σ_k p_k log(p_k + 1e-10) in nats, (B,) float64, of probabilities (B, K) in float32 or better.

    >>> entropy(np.array([[0.5, 0.5], [0.9, 0.1]])).round(4).tolist()
    [0.6931, 0.3251]
    """
    return -(probabilities * np.log(probabilities + 1e-10)).sum(1, dtype=np.float64)


@STRATEGIES.register_module()
class Entropy(Strategy):
    """Largest entropy first; "uncertainty" in ActiveKD (arXiv 2506.00910). Ties go to the lowest id."""

    needs = frozenset({"probabilities"})

    def pick(self, pool: Pool, budget: int, rng: np.random.Generator, progress: Progress) -> np.ndarray:
        return largest(pool, budget, entropy, progress)
