"""ClassBalanced: more images of the classes, as the student predicts them, that have few labels."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from limbeck.engine.registry import STRATEGIES
from limbeck.engine.selection import Pool, Progress, Strategy
from limbeck.errors import ConfigError
from limbeck.multimodal.vlm.strategies._scores import unlabelled_rows

VARIANTS = ("balanced", "activekd")


def class_quotas(counts: np.ndarray, budget: int) -> np.ndarray:
    """How many images each class gets: w_c ∝ 1 / (n_c + 1), ⌊Q w_c⌋ each, the remainder by one in order of falling w.

    Args:
        counts: (P,) n_c, labelled images of the classes that are predicted at all.
        budget: Q.
    Returns: (P,) whole numbers that sum to Q; equal weights get the remainder in order of class. Weights are exact
        fractions: a rounded Q w_c just below a whole number would move an image to another class.

    >>> class_quotas(np.array([0, 1, 3]), 7).tolist()
    [4, 2, 1]
    """
    weights = [Fraction(1, int(n) + 1) for n in counts]
    unit = Fraction(budget) / sum(weights)
    quotas = np.array([int(unit * w) for w in weights], dtype=np.int64)
    falling = np.argsort(np.asarray(counts), kind="stable")
    quotas[falling[: budget - quotas.sum()]] += 1
    return quotas


@STRATEGIES.register_module()
class ClassBalanced(Strategy):
    """Class quotas by labelled counts, images drawn at random within each predicted class.

    The predicted class is arg max p. Each class that is predicted for some unlabelled image has a quota, see
    `class_quotas`; a class with fewer images than its quota gives all, and what is short is drawn at random from the
    rest. Classes come in order of falling weight.

    Args:
        variant: 'balanced' takes n_c = 0 for a class without labels; 'activekd' takes 1, as the code of ActiveKD
            (arXiv 2506.00910) does.
    Raises: ConfigError for another variant.
    """

    needs = frozenset({"probabilities"})

    def __init__(self, *, variant: str = "balanced") -> None:
        if variant not in VARIANTS:
            raise ConfigError(f"ClassBalanced: variant {variant!r} is none of {', '.join(VARIANTS)}")
        self.variant = variant

    def pick(self, pool: Pool, budget: int, rng: np.random.Generator, progress: Progress) -> np.ndarray:
        predicted = unlabelled_rows(pool, lambda p: p.argmax(1), progress).astype(np.int64)
        counts = np.bincount(pool.labels, minlength=pool.classes or 0)
        if self.variant == "activekd":
            counts = np.maximum(counts, 1)
        present = np.unique(predicted)
        quotas = class_quotas(counts[present], budget)
        chosen: list[np.ndarray] = []
        for index in np.argsort(counts[present], kind="stable"):
            members = np.flatnonzero(predicted == present[index])
            chosen.append(rng.permutation(members)[: quotas[index]])
        taken = np.concatenate(chosen)
        rest = np.setdiff1d(np.arange(len(predicted)), taken, assume_unique=True)
        places = np.concatenate([taken, rng.permutation(rest)[: budget - len(taken)]])
        progress(budget, budget, "picks")
        return pool.unlabelled[places]
