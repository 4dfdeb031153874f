"""KITTI's greedy matching of detections to labelled boxes, at every score threshold of a whole data set at once.

Only boxes that overlap enough can meet, so a set falls into small groups (connected components of the overlap graph)
whose outcome changes at the scores of their own detections alone. All groups are matched side by side, once for each of
these scores; sums over the groups give the counts at any threshold exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

COUNTED, IGNORED, ABSENT = 0, 1, -1  # status of a labelled box or a detection for one class and level


@dataclass(frozen=True, slots=True)
class Edges:
    """Pairs of a labelled box and a detection of the same frame; indices over the whole set, and their overlap (E,)."""

    truth: np.ndarray
    found: np.ndarray
    overlap: np.ndarray

    def where(self, kept: np.ndarray) -> Edges:
        """Those of a mask or an order (E,)."""
        return Edges(self.truth[kept], self.found[kept], self.overlap[kept])


class Steps:
    """A function of the score threshold that changes by `change` at each of `scores`: its sum over scores ≥ θ."""

    def __init__(self, scores: np.ndarray, change: np.ndarray) -> None:
        order = np.argsort(-scores, kind="stable")
        self._falling = -scores[order]
        self._sums = np.concatenate(([0], np.cumsum(change[order])))

    def at(self, thresholds: np.ndarray) -> np.ndarray:
        """Values at thresholds (K,)."""
        return self._sums[np.searchsorted(self._falling, -thresholds, side="right")]


@dataclass(frozen=True, slots=True)
class Matches:
    """What matching gives for one class, level and overlap threshold.

    hits: scores of the true positives when all detections are there, descending.
    true, false: number of true and of false positives, by score threshold.
    """

    hits: np.ndarray
    true: Steps
    false: Steps


def match(edges: Edges, truth: np.ndarray, found: np.ndarray, scores: np.ndarray, excused: np.ndarray) -> Matches:
    """Match as KITTI's devkit does, in the order of the labelled boxes.

    With all detections, a box takes the free one with the highest score. Above a threshold it takes the counted one
    with the largest overlap, or without any the first ignored one. A pair with an ignored side counts as nothing.
    Equals are taken in their order.

    Args:
        edges: pairs that overlap enough.
        truth, found: status of each labelled box (M,) and detection (N,).
        scores: (N,).
        excused: (N,) whether a detection is no false positive when nothing takes it (it lies in a DontCare region).
    """
    edges = edges.where((truth[edges.truth] != ABSENT) & (found[edges.found] != ABSENT))
    groups = _Groups(edges, scores)
    order = np.lexsort((edges.found, -scores[edges.found], edges.truth, groups.turn))
    best = _take(edges, order, groups.turn)
    hit = (truth[edges.truth[best]] == COUNTED) & (found[edges.found[best]] == COUNTED)
    levels, hits, taken = _by_threshold(groups, edges, truth, found, scores, excused)
    wrong = (found == COUNTED) & ~excused
    false = Steps(np.concatenate((scores[wrong], levels)), np.concatenate((np.ones(int(wrong.sum()), int), -taken)))
    return Matches(-np.sort(-scores[edges.found[best[hit]]]), Steps(levels, hits), false)


class _Groups:
    """Which boxes can compete: `of` each edge its group, `turn` the rank of its labelled box there; `scores` of the
    detections of each group, descending, one group after the other from `start`."""

    def __init__(self, edges: Edges, scores: np.ndarray) -> None:
        _, truth = np.unique(edges.truth, return_inverse=True)
        ids, found = np.unique(edges.found, return_inverse=True)
        boxes = int(truth.max(initial=-1)) + 1
        size = boxes + len(ids)
        graph = coo_array((np.ones(len(truth), dtype=bool), (truth, boxes + found)), shape=(size, size))
        self.count, group = connected_components(graph, directed=False) if size else (0, np.zeros(0, int))
        self.of = group[truth]
        self.turn = _rank(group[:boxes])[truth]
        order = np.lexsort((-scores[ids], group[boxes:]))
        self.scores = scores[ids][order]
        self.sizes = np.bincount(group[boxes:], minlength=self.count)
        self.start = np.cumsum(self.sizes) - self.sizes


def _rank(groups: np.ndarray) -> np.ndarray:
    """Position of each element among those of its group."""
    order = np.argsort(groups, kind="stable")
    members = groups[order]
    first = np.searchsorted(members, members)
    found = np.empty(len(groups), dtype=np.int64)
    found[order] = np.arange(len(groups)) - first
    return found


def _take(edges: Edges, order: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Indices of the edges that are taken when each labelled box, in turn, takes the first free detection of its edges.

    Args:
        order: edges by turn, box and preference. Boxes of one turn are of different groups and cannot compete.
    """
    free = np.ones(int(edges.found.max(initial=-1)) + 1, dtype=bool)
    taken = []
    for rows in np.split(order, np.flatnonzero(np.diff(turn[order])) + 1):
        rows = rows[free[edges.found[rows]]]
        first = rows[np.flatnonzero(np.diff(edges.truth[rows], prepend=-1))]
        free[edges.found[first]] = False
        taken.append(first)
    return np.concatenate(taken)


def _by_threshold(
    groups: _Groups, edges: Edges, truth: np.ndarray, found: np.ndarray, scores: np.ndarray, excused: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores at which a group's outcome may change (S,), and by how much: hits (S,) and counted detections taken that
    would else be false positives (S,)."""
    ignored = found[edges.found] == IGNORED
    order = np.lexsort((edges.found, np.where(ignored, 0.0, -edges.overlap), ignored, edges.truth, groups.turn))
    is_hit = (truth[edges.truth] == COUNTED) & ~ignored
    spares = ~ignored & ~excused[edges.found]
    before = np.zeros((2, groups.count), dtype=np.int64)
    levels, changes = [np.zeros(0)], [np.zeros((2, 0), dtype=np.int64)]
    for place in range(int(groups.sizes.max(initial=0))):
        live = np.flatnonzero(groups.sizes > place)
        threshold = np.full(groups.count, np.inf)
        threshold[live] = groups.scores[groups.start[live] + place]
        order = order[groups.sizes[groups.of[order]] > place]
        there = order[scores[edges.found[order]] >= threshold[groups.of[order]]]
        taken = _take(edges, there, groups.turn)
        of = groups.of[taken]
        now = np.stack([np.bincount(of[which[taken]], minlength=groups.count) for which in (is_hit, spares)])
        levels.append(threshold[live])
        changes.append((now - before)[:, live])
        before = now
    hits, taken = np.concatenate(changes, 1)
    return np.concatenate(levels), hits, taken
