"""PCoreSet: greedy k-centre on the student's class probabilities (arXiv 2506.00910)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy.special import rel_entr

from limbeck.engine.registry import STRATEGIES
from limbeck.engine.selection import Pool, Progress, Strategy, row_blocks
from limbeck.errors import ConfigError
from limbeck.multimodal.vlm.strategies._k_centre import Euclidean, Points, Space, greedy_k_centre


class Manhattan(Space):
    """Rows (N, K) with the L1 distance."""

    def __init__(self, table: np.ndarray) -> None:
        self.table = table

    def rows(self, ids: np.ndarray) -> Iterator[tuple[slice, Points]]:
        for where, block in row_blocks(self.table, ids):
            yield where, (block,)

    def squared(self, block: Points, centres: Points, below: np.ndarray | float) -> np.ndarray:
        return torch.cdist(torch.from_numpy(block[0]), torch.from_numpy(centres[0]), p=1).square().numpy()


class JensenShannon(Manhattan):
    """Distributions (N, K) with the square root of the Jensen–Shannon divergence, which is a metric; in float64."""

    def rows(self, ids: np.ndarray) -> Iterator[tuple[slice, Points]]:
        for where, block in row_blocks(self.table, ids, dtype=np.float64):
            yield where, (block,)

    def squared(self, block: Points, centres: Points, below: np.ndarray | float) -> np.ndarray:
        (p,), (q,) = block, centres
        found = np.empty((len(p), len(q)))
        for column, centre in enumerate(q):
            middle = (p + centre) / 2
            found[:, column] = (rel_entr(p, middle) + rel_entr(centre, middle)).sum(1) / 2
        return np.maximum(found, 0)


SPACES = {
    "l2": Euclidean,
    "l1": Manhattan,
    "hellinger": lambda table: Euclidean(table, np.sqrt),  # up to the factor √2, which changes no order
    "js": JensenShannon,
}


@STRATEGIES.register_module()
class PCoreSet(Strategy):
    """Farthest first in the simplex of class probabilities; covers classes and what lies between them.

    C = {p(x_j) : x_j labelled}, the current student's predictions on labelled images, not one-hot labels; then Q times
    i* = argmax_i min_{c ∈ C} ‖p(x_i) − c‖₂ over the images not chosen yet, and p(x_i*) joins C.

    ASSUMPTION: ties, and the first pick where nothing is labelled, go to the lowest id.

    Args:
        metric: 'l2', the paper's; 'l1', 'hellinger' or 'js' (square root of the Jensen–Shannon divergence) are ours,
            and slower but for 'hellinger'.
    Raises: ConfigError for another metric.
    """

    needs = frozenset({"probabilities"})

    def __init__(self, *, metric: str = "l2") -> None:
        if metric not in SPACES:
            raise ConfigError(f"PCoreSet: metric {metric!r} is none of {', '.join(SPACES)}")
        self.metric = metric

    def pick(self, pool: Pool, budget: int, rng: np.random.Generator, progress: Progress) -> np.ndarray:
        assert pool.probabilities is not None
        space = SPACES[self.metric](pool.probabilities)
        return greedy_k_centre(space, pool.unlabelled, pool.labelled, budget, progress)[0]
