"""Small pools and straightforward references that the strategies' tests share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from limbeck.engine.selection import Pool


def random_pool(
    seed: int, images: int = 60, classes: int = 7, width: int = 5, labelled: int = 8, unused: int = 4
) -> Pool:
    """Dirichlet probabilities without ties; labelled, unlabelled and unused ids in random order."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(images)
    return Pool(
        probabilities=rng.dirichlet(np.full(classes, 0.5), images).astype(np.float32),
        features=rng.normal(size=(images, width)).astype(np.float32),
        labelled=ids[:labelled],
        labels=rng.integers(0, classes, labelled),
        unlabelled=ids[labelled + unused :],
    )


def grid_pool(seed: int, images: int = 40, classes: int = 4, labelled: int = 5, steps: int = 8) -> Pool:
    """Probabilities that are multiples of 1 / steps, a power of 2: exact in float16, with many ties and duplicates."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(classes, 0.5), images)
    table = np.stack([rng.multinomial(steps, share) for share in shares]) / steps
    ids = rng.permutation(images)
    return Pool(
        probabilities=table.astype(np.float16),
        features=table.astype(np.float32),
        labelled=ids[:labelled],
        labels=rng.integers(0, classes, labelled),
        unlabelled=ids[labelled:],
    )


def greedy(
    table: np.ndarray,
    pool: Pool,
    budget: int,
    distance: Callable[[np.ndarray, np.ndarray], float],
    centres: list[int] | None = None,
) -> list[int]:
    """Farthest first from its definition: every distance anew at every pick; ties to the lowest id."""
    rows = table.astype(np.float64)
    chosen = pool.labelled.tolist() if centres is None else list(centres)
    picks: list[int] = []
    for _ in range(budget):
        best, farthest = -1, -1.0
        for i in pool.unlabelled.tolist():
            if i in picks:
                continue
            nearest = min((distance(rows[i], rows[c]) for c in chosen), default=np.inf)
            if nearest > farthest:
                best, farthest = i, nearest
        picks.append(best)
        chosen.append(best)
    return picks


def squared_l2(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a - b) ** 2).sum())


def permuted(pool: Pool, seed: int) -> tuple[Pool, np.ndarray]:
    """The pool with its rows in another order, and the old id of every new one."""
    assert pool.probabilities is not None
    assert pool.features is not None
    old = np.random.default_rng(seed).permutation(pool.images)
    new = np.argsort(old)
    made = Pool(
        probabilities=pool.probabilities[old],
        features=pool.features[old],
        labelled=new[pool.labelled],
        labels=pool.labels,
        unlabelled=new[pool.unlabelled],
    )
    return made, old
