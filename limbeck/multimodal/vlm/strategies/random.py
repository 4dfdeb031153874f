"""Random: images drawn uniformly, the reference of every comparison."""

from __future__ import annotations

import numpy as np

from limbeck.engine.registry import STRATEGIES
from limbeck.engine.selection import Pool, Progress, Strategy


@STRATEGIES.register_module()
class Random(Strategy):
    """The first images of a random permutation: uniform, without replacement. Needs nothing of the student."""

    def pick(self, pool: Pool, budget: int, rng: np.random.Generator, progress: Progress) -> np.ndarray:
        chosen = rng.permutation(pool.unlabelled)[:budget]
        progress(budget, budget, "picks")
        return chosen
