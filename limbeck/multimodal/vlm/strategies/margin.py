"""Margin: the images whose two likeliest classes are nearly level."""

from __future__ import annotations

import numpy as np

from limbeck.engine.registry import STRATEGIES
from limbeck.engine.selection import Pool, Progress, Strategy
from limbeck.multimodal.vlm.strategies._scores import largest


def margin(probabilities: np.ndarray) -> np.ndarray:
    """p_(1) − p_(2), largest minus second largest, (B,) of probabilities (B, K), K ≥ 2.

    >>> margin(np.array([[0.5, 0.25, 0.25], [0.5, 0.5, 0.0]])).tolist()
    [0.25, 0.0]
    """
    rest = probabilities.copy()
    top = rest.argmax(1)
    rest[np.arange(len(rest)), top] = -1
    return probabilities[np.arange(len(rest)), top] - rest.max(1)


@STRATEGIES.register_module()
class Margin(Strategy):
    """Smallest margin first. Ties go to the lowest id.

    ASSUMPTION: not in the code of ActiveKD; the usual rule of uncertainty sampling.
    """

    needs = frozenset({"probabilities"})

    def pick(self, pool: Pool, budget: int, rng: np.random.Generator, progress: Progress) -> np.ndarray:
        return largest(pool, budget, lambda p: -margin(p), progress)
