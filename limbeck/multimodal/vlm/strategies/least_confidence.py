"""LeastConfidence: the images whose likeliest class is least likely."""

from __future__ import annotations

import numpy as np

from limbeck.engine.registry import STRATEGIES
from limbeck.engine.selection import Pool, Progress, Strategy
from limbeck.multimodal.vlm.strategies._scores import largest


@STRATEGIES.register_module()
class LeastConfidence(Strategy):
    """Smallest max_k p_k first. Ties go to the lowest id.

    ASSUMPTION: not in the code of ActiveKD; the usual rule of uncertainty sampling.
    """

    needs = frozenset({"probabilities"})

    def pick(self, pool: Pool, budget: int, rng: np.random.Generator, progress: Progress) -> np.ndarray:
        return largest(pool, budget, lambda p: -p.max(1), progress)
