"""KITTI's average precision of 3D boxes, as mmdet3d 1.4 computes it, in numpy alone and float64.

Geiger et al., Are we ready for autonomous driving? The KITTI vision benchmark suite, CVPR 2012; 40 recall
positions after Simonelli et al., arXiv 1905.12365. Boxes are in the camera's frame: x right, y down, z forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from limbeck.errors import ConfigError
from limbeck.pointcloud._kitti_frames import Detections, FrameTruth, KittiSet
from limbeck.pointcloud._kitti_matching import COUNTED, Matches, match
from limbeck.pointcloud.data.frames import CLASSES

View = Literal["2D", "BEV", "3D"]
Level = Literal["easy", "moderate", "hard"]
Strictness = Literal["strict", "loose"]
Kind = Literal["AP11", "AP40", "exact"]

VIEWS: tuple[View, ...] = ("2D", "BEV", "3D")
LEVELS: tuple[Level, ...] = ("easy", "moderate", "hard")
STRICTNESS: tuple[Strictness, ...] = ("strict", "loose")
KINDS: tuple[Kind, ...] = ("AP11", "AP40", "exact")
POINTS = 41  # score thresholds at most, at recalls 0, 1/40, …, 1

_OVERLAP = {  # what a match must exceed, strict and loose
    "car": {"2D": (0.7, 0.7), "BEV": (0.7, 0.5), "3D": (0.7, 0.5)},
    "pedestrian": {"2D": (0.5, 0.5), "BEV": (0.5, 0.25), "3D": (0.5, 0.25)},
    "cyclist": {"2D": (0.5, 0.5), "BEV": (0.5, 0.25), "3D": (0.5, 0.25)},
}


@dataclass(frozen=True, slots=True)
class KittiResult:
    """Average precision in percent, NaN where no box counts.

    boxes: (classes, levels), number of labelled boxes that count.
    values: by kind, (views, classes, levels, strict and loose).
    """

    classes: tuple[str, ...]
    views: tuple[View, ...]
    boxes: np.ndarray
    values: dict[Kind, np.ndarray]

    def ap(self, view: View, level: Level, *, kind: Kind = "AP40", strictness: Strictness = "strict") -> np.ndarray:
        """Of each class, (classes,).

        Raises: ConfigError for a view that was not evaluated.
        """
        if view not in self.views:
            raise ConfigError(f"{view!r} was not evaluated; it is none of {', '.join(self.views)}")
        place = self.views.index(view), slice(None), LEVELS.index(level), STRICTNESS.index(strictness)
        return self.values[kind][place]

    def overall(self, view: View, level: Level, *, kind: Kind = "AP40", strictness: Strictness = "strict") -> float:
        """Mean over the classes that have a counted box, NaN without any; mmdet3d averages zeros for the others."""
        values = self.ap(view, level, kind=kind, strictness=strictness)
        known = values[~np.isnan(values)]
        return float(known.mean()) if known.size else float("nan")

    def ceilings(self, kind: Literal["AP11", "AP40"] = "AP40") -> np.ndarray:
        """What a perfect detector gets of each class and level, (classes, levels): with n < 41 boxes there are only n
        thresholds, and AP40 does not count the first, so that it ends at 100 · (n − 1) / 40."""
        thresholds = np.arange(POINTS) < np.minimum(self.boxes, POINTS)[..., None]
        return _averages(thresholds.astype(float))[kind]

    def log(self) -> dict[str, float]:
        """mmdet3d's names without its prefix `KITTI/`, percent to 4 decimals; and `car_3d_ap_exact_moderate_strict`.

        A class without a counted box is left out, where mmdet3d writes 0.
        """
        found: dict[str, float] = {}
        for view in self.views:
            for level in LEVELS:
                for kind in KINDS:
                    for strictness in STRICTNESS:
                        values = self.ap(view, level, kind=kind, strictness=strictness)
                        for name, value in zip(self.classes, values):
                            found[_key(name, view, kind, f"{level}_{strictness}")] = value
                    found[_key("Overall", view, kind, level)] = self.overall(view, level, kind=kind)
        return {name: round(float(value), 4) for name, value in found.items() if not np.isnan(value)}


def _key(name: str, view: str, kind: Kind, rest: str) -> str:
    made = f"{name}_{view}_{'ap_exact' if kind == 'exact' else kind}"
    return f"{made.lower() if kind == 'exact' else made}_{rest}"


def evaluate(
    frames: Sequence[FrameTruth],
    detections: Sequence[Detections],
    *,
    classes: Sequence[str] = CLASSES,
    views: Sequence[View] = ("BEV", "3D"),
) -> KittiResult:
    """KITTI's AP at 11 and 40 recall positions, strict and loose, by class and level; and an exact area beside them.

    DontCare regions count in 2D alone. AP_exact is our own [assumption]: thresholds at the score of every true positive
    and the whole area under the interpolated precision-recall curve, so that a perfect detector gets 100 for any number
    of boxes. Where nothing is counted above a threshold precision is 0, where mmdet3d's is not a number.

    Args:
        frames, detections: of the same frames, in the same order.
        classes: of Pedestrian, Cyclist and Car.
        views: of 2D, BEV and 3D.
    Raises: ShapeMismatch, ConfigError.
    """
    unknown = [name for name in classes if name.lower() not in _OVERLAP]
    if unknown or not classes:
        raise ConfigError(f"KITTI's metric is of {', '.join(CLASSES)}; got {unknown[0] if unknown else 'no class'!r}")
    data = KittiSet(frames, detections)
    lowest = min(min(_OVERLAP[name.lower()][view]) for name in classes for view in views)
    edges = {view: data.edges(view, lowest) for view in views}
    boxes = np.zeros((len(classes), len(LEVELS)), dtype=np.int64)
    shape = len(views), *boxes.shape, len(STRICTNESS)
    values: dict[Kind, np.ndarray] = {kind: np.full(shape, np.nan) for kind in KINDS}
    for v, k, d, s in np.ndindex(shape):
        view, name = cast(View, views[int(v)]), classes[int(k)].lower()
        truth, found = data.truth_status(name, d), data.found_status(name, d)
        boxes[k, d] = count = int((truth == COUNTED).sum())
        threshold = _OVERLAP[name][view][s]
        excused = data.in_dont_care > (threshold if view == "2D" else np.inf)
        enough = edges[view].where(edges[view].overlap > threshold)
        if count:
            for kind, value in _precisions(match(enough, truth, found, data.scores, excused), count).items():
                values[kind][v, k, d, s] = value
    return KittiResult(tuple(classes), tuple(views), boxes, values)


def recall_thresholds(hits: np.ndarray, boxes: int) -> np.ndarray:
    """Scores at which recall comes nearest to 0, 1/40, 2/40, …; at most 41.

    Args:
        hits: scores of the true positives, descending.
        boxes: how many there are to find, at least as many as `hits`.
    """
    found, target, last = [], 0.0, len(hits) - 1
    for index, score in enumerate(hits.tolist()):
        recall = (index + 1) / boxes
        after = recall if index == last else (index + 2) / boxes
        if index == last or after - target >= target - recall:
            found.append(score)
            target += 1 / (POINTS - 1)
    return np.array(found)


def _precisions(matches: Matches, boxes: int) -> dict[Kind, float]:
    thresholds = recall_thresholds(matches.hits, boxes)
    curve = np.zeros(POINTS)
    curve[: len(thresholds)] = _precision(matches, thresholds)
    every = np.unique(matches.hits)
    recall = matches.true.at(every) / boxes
    return {**_averages(curve), "exact": _area(recall, _precision(matches, every))}


def _precision(matches: Matches, thresholds: np.ndarray) -> np.ndarray:
    true = matches.true.at(thresholds)
    return true / np.maximum(true + matches.false.at(thresholds), 1)


def _averages(precision: np.ndarray) -> dict[Kind, Any]:
    """AP in percent of curves (..., 41); each point gets the best precision of those at its recall or above."""
    best = np.maximum.accumulate(precision[..., ::-1], -1)[..., ::-1]
    return {"AP11": 100.0 * best[..., ::4].mean(-1), "AP40": 100.0 * best[..., 1:].mean(-1)}


def _area(recall: np.ndarray, precision: np.ndarray) -> float:
    """In percent, under the best precision at each recall or above; points in any order."""
    order = np.argsort(recall, kind="stable")
    best = np.maximum.accumulate(precision[order][::-1])[::-1]
    return 100.0 * float((np.diff(recall[order], prepend=0.0) * best).sum())
