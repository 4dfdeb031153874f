"""Greedy k-centre, farthest first: spaces of images, the nearest centre of every image, and the greedy choice.

Nothing of the size of the pool's table is made: rows come in blocks, and what is kept is a few numbers an image. A new
centre costs one pass over those images that it can come nearer to than their present centre.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from limbeck.engine.selection import Progress, row_blocks, silent

Points = tuple[np.ndarray, ...]

CENTRES = 4096  # that one pass compares at most
SLACK = 1e-3  # of squared distances; above the rounding of float32 sums over some thousand columns


class Space:
    """Images as points, named by id, with a distance for which the triangle inequality holds."""

    def rows(self, ids: np.ndarray) -> Iterator[tuple[slice, Points]]:
        """Blocks of points of these ids: the place in `ids`, and arrays whose first axis is the block's."""
        raise NotImplementedError

    def squared(self, block: Points, centres: Points, below: np.ndarray | float) -> np.ndarray:
        """Squared distances (B, C) between a block and centres.

        An entry may be infinite where it is certain that it is neither the row's smallest nor under `below`, (B,).
        """
        raise NotImplementedError

    def points(self, ids: np.ndarray) -> Points:
        """The points of these few ids, whole."""
        return tuple(np.concatenate(parts) for parts in zip(*(block for _, block in self.rows(ids)), strict=True))


class Euclidean(Space):
    """Rows of a table, with the L2 distance.

    Distances are sums of squared differences in float32. ‖x‖² + ‖c‖² − 2 x·c would cost one matrix product, but near 0
    it is rounding noise, which would decide the order of late picks and split exact ties. So the product only excludes:
    where it differs from the row's smallest by more than its error bound, the difference is not worked out.

    Args:
        table: (N, D).
        prepare: changes a block (B, D) of float32, row by row.
    """

    def __init__(self, table: np.ndarray, prepare: Callable[[np.ndarray], np.ndarray] | None = None) -> None:
        self.table, self.prepare = table, prepare
        self.norms = np.full(len(table), np.nan, np.float32)  # squared; each worked out at its row's first reading

    def rows(self, ids: np.ndarray) -> Iterator[tuple[slice, Points]]:
        for where, block in row_blocks(self.table, ids):
            x = block if self.prepare is None else self.prepare(block)
            n = self.norms[ids[where]]
            if np.isnan(n).any():
                self.norms[ids[where]] = n = squared_norms(x)
            yield where, (x, n)

    def squared(self, block: Points, centres: Points, below: np.ndarray | float) -> np.ndarray:
        (x, n), (c, m) = block, centres
        rough = n[:, None] + m - 2 * (x @ c.T)
        # Error of `rough`: (D + 8) u (n + m), u = eps / 2. Twice that, and twice that again for the differences' own.
        slack = 3 * (x.shape[1] + 8) * np.finfo(np.float32).eps * (n + m.max())
        limit = np.minimum(rough.min(1), below) + slack
        rows, columns = np.nonzero(rough <= limit[:, None])
        found = np.full(rough.shape, np.inf, np.float32)
        for start in range(0, len(rows), len(x)):
            i, j = rows[start : start + len(x)], columns[start : start + len(x)]
            found[i, j] = squared_norms(x[i] - c[j])
        return found


class Nearest:
    """The nearest centre of every image, kept up to date as centres come in.

    Args:
        space: where distances are measured.
        ids: (U,) images, ascending.
    """

    def __init__(self, space: Space, ids: np.ndarray) -> None:
        self.space, self.ids = space, ids
        self.squared = np.full(len(ids), np.inf)  # squared distance to the nearest centre; infinite without centres
        self.owner = np.zeros(len(ids), np.int32)  # place of that centre in `centres`
        self.centres = np.empty(0, np.int64)

    def add(self, centres: np.ndarray, progress: Progress = silent) -> None:
        """Add centres, by id; reports images compared."""
        total, parts = len(self.ids), range(0, len(centres), CENTRES)
        for index, start in enumerate(parts):
            self._add(
                np.asarray(centres)[start : start + CENTRES],
                lambda done, index=index: progress(index * total + done, len(parts) * total, "images"),
            )

    def _add(self, new: np.ndarray, report: Callable[[int], None]) -> None:
        points = self.space.points(new)
        active = self._reachable(points) if len(new) == 1 and len(self.centres) else np.arange(len(self.ids))
        for where, block in self.space.rows(self.ids[active]):
            at = active[where]
            before = self.squared[at]
            found = self.space.squared(block, points, before)
            which = found.argmin(1)
            value = found[np.arange(len(found)), which]
            closer = value < before
            self.squared[at[closer]] = value[closer]
            self.owner[at[closer]] = len(self.centres) + which[closer]
            report(where.stop)
        self.centres = np.concatenate([self.centres, new])

    def _reachable(self, point: Points) -> np.ndarray:
        """Places of images that the new centre may be nearer to than their owner.

        The triangle inequality rules out those with d(owner, new) ≥ 2 d(owner, x).
        """
        between = np.empty(len(self.centres))
        for where, block in self.space.rows(self.centres):
            between[where] = self.space.squared(block, point, np.inf)[:, 0]
        return np.flatnonzero(between[self.owner] < 4 * (1 + SLACK) * self.squared)

    def take(self, place: int) -> int:
        """Make image number `place` of `ids` a centre that is never the farthest again; returns its id."""
        self.add(self.ids[place : place + 1])
        self.squared[place] = -1
        return int(self.ids[place])


def greedy_k_centre(
    space: Space, ids: np.ndarray, centres: np.ndarray, budget: int, progress: Progress = silent
) -> tuple[np.ndarray, np.ndarray]:
    """Farthest-first traversal (Gonzalez 1985; Hochbaum & Shmoys 1985): at most twice the optimal covering radius.

    Repeats: the image farthest from its nearest centre becomes a centre. Ties, and the first pick where there are no
    centres, go to the lowest id.

    Args:
        ids: (U,) to choose from, ascending. centres: (L,) ids that count as chosen; may be empty.
    Returns: the chosen ids (budget,), and how far each was from its nearest centre, which never increases.
    """
    near = Nearest(space, ids)
    near.add(centres, progress)
    picks, gaps = np.empty(budget, np.int64), np.empty(budget)
    for pick in range(budget):
        place = int(near.squared.argmax())
        gaps[pick] = np.sqrt(near.squared[place])
        picks[pick] = near.take(place) if pick + 1 < budget else ids[place]
        progress(pick + 1, budget, "picks")
    return picks, gaps


def squared_norms(x: np.ndarray) -> np.ndarray:
    """Sums of squares (B,) of rows (B, D); the same for equal rows wherever they stand."""
    return np.einsum("ij,ij->i", x, x)
