"""BADGE: diverse and uncertain images by k-means++ on gradient embeddings (arXiv 1906.03671)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from limbeck.engine.registry import STRATEGIES
from limbeck.engine.selection import Pool, Progress, Strategy, block_rows, row_blocks
from limbeck.errors import ConfigError
from limbeck.multimodal.vlm.strategies._k_centre import Nearest, Points, Space, greedy_k_centre, squared_norms

VARIANTS = ("published", "activekd")
FIRSTS = ("largest", "uniform")
ZERO = 1e-12  # of ‖g_i‖² + ‖g_j‖²: below that a squared distance in float64 is rounding


class Gradients(Space):
    """Gradient embeddings g = e ⊗ f of the last layer's weights, e = p − onehot(argmax p) (K,), f the feature (d,).

    g has K · d entries and is never made: ⟨g_i, g_j⟩ = ⟨e_i, e_j⟩ ⟨f_i, f_j⟩ and ‖g‖² = ‖e‖² ‖f‖². In float64, since
    distances come out of a difference of products.

    Args:
        probabilities: (N, K). features: (N, d).
        unit: divide every g by its norm; a g of zeros stays.
    """

    def __init__(self, probabilities: np.ndarray, features: np.ndarray, *, unit: bool = False) -> None:
        self.probabilities, self.features, self.unit = probabilities, features, unit

    def rows(self, ids: np.ndarray) -> Iterator[tuple[slice, Points]]:
        rows = block_rows(self.probabilities.shape[1] + self.features.shape[1], itemsize=8)
        e_blocks = row_blocks(self.probabilities, ids, rows=rows, dtype=np.float64)
        f_blocks = row_blocks(self.features, ids, rows=rows, dtype=np.float64)
        for (where, e), (_, f) in zip(e_blocks, f_blocks, strict=True):
            e[np.arange(len(e)), e.argmax(1)] -= 1
            norms = squared_norms(e) * squared_norms(f)
            if self.unit:
                e /= np.sqrt(np.where(norms > 0, norms, 1))[:, None]
                norms = (norms > 0).astype(np.float64)
            yield where, (e, f, norms)

    def squared(self, block: Points, centres: Points, below: np.ndarray | float) -> np.ndarray:
        (e, f, n), (e_c, f_c, n_c) = block, centres
        both = n[:, None] + n_c
        found = both - 2 * (e @ e_c.T) * (f @ f_c.T)
        found[found < ZERO * both] = 0
        return found


def k_means_plus_plus(
    space: Space, ids: np.ndarray, first: int, budget: int, rng: np.random.Generator, progress: Progress
) -> np.ndarray:
    """Seeding of k-means++ (Arthur & Vassilvitskii 2007): the next with probability ∝ its squared distance to the
    nearest chosen.

    One number u of `rng.random()` a pick: the first place where the running sum of weights, in order of ids, is above
    u times their sum. Where all distances are 0 the rest have equal weights.

    Args:
        ids: (U,) to choose from. first: the place in `ids` of the first choice.
    Returns: (budget,) ids in order of choice.
    """
    near, place = Nearest(space, ids), first
    chosen = np.empty(budget, np.int64)
    for pick in range(budget):
        if pick:
            weights = np.maximum(near.squared, 0)  # chosen ones are at −1
            if not weights.any():
                weights = (near.squared >= 0).astype(np.float64)
            place = _draw(weights, rng.random())
        chosen[pick] = near.take(place) if pick + 1 < budget else ids[place]
        progress(pick + 1, budget, "picks")
    return chosen


def _draw(weights: np.ndarray, u: float) -> int:
    running = np.cumsum(weights)
    place = int(np.searchsorted(running, u * running[-1], side="right"))
    return min(place, int(np.flatnonzero(weights)[-1]))  # rounding of u · sum may lead past the end


@STRATEGIES.register_module()
class BADGE(Strategy):
    """Batch active learning by diverse gradient embeddings; labelled images play no part.

    Args:
        variant: 'published' samples raw embeddings by k-means++, so that long gradients, of uncertain images, are
            likelier. 'activekd' is what the code of ActiveKD (arXiv 2506.00910) does: embeddings of norm 1, then
            farthest first by 1 − cosine.
        first: of 'published', the first choice: 'largest' norm, as the authors' code has it, or 'uniform', as k-means++
            has it.

    ASSUMPTION: the first choice of 'activekd' is the lowest id; its code takes the largest norm, but all norms are 1.

    Raises: ConfigError for another variant or first choice.
    """

    needs = frozenset({"probabilities", "features"})

    def __init__(self, *, variant: str = "published", first: str = "largest") -> None:
        for name, value, known in (("variant", variant, VARIANTS), ("first", first, FIRSTS)):
            if value not in known:
                raise ConfigError(f"BADGE: {name} {value!r} is none of {', '.join(known)}")
        self.variant, self.first = variant, first

    def pick(self, pool: Pool, budget: int, rng: np.random.Generator, progress: Progress) -> np.ndarray:
        assert pool.probabilities is not None
        assert pool.features is not None
        ids = pool.unlabelled
        space = Gradients(pool.probabilities, pool.features, unit=self.variant == "activekd")
        if self.variant == "activekd":
            return greedy_k_centre(space, ids, np.empty(0, np.int64), budget, progress)[0]
        if self.first == "uniform":
            first = int(rng.integers(len(ids)))
        else:
            norms = np.empty(len(ids))
            for where, (_, _, squared) in space.rows(ids):
                norms[where] = squared
                progress(where.stop, len(ids), "images")
            first = int(norms.argmax())
        return k_means_plus_plus(space, ids, first, budget, rng, progress)
