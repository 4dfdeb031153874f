"""Labelled boxes and detections of frames as KITTI's metric sees them: their status and overlaps over a whole set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.pointcloud._kitti_matching import ABSENT, COUNTED, IGNORED, Edges
from limbeck.pointcloud.boxes import BOX, overlaps
from limbeck.pointcloud.data.frames import LEAST_HEIGHT, MOST_OCCLUDED, MOST_TRUNCATED

_NEIGHBOURS = {"car": "van", "pedestrian": "person_sitting"}  # hit or missed, they count as nothing


@dataclass(frozen=True, slots=True)
class FrameTruth:
    """The labelled boxes of a frame, in the order of its file.

    names: KITTI's types, case aside; other types than the evaluated ones may be there.
    truncated, occluded: (M,), as KITTI's label files have them.
    bboxes: (M, 4), x1 y1 x2 y2 in pixels of the image.
    boxes: (M, 7), x y z of the bottom centre in the camera's frame, length, height, width in metres, yaw.
    dont_care: (D, 4), regions of the image that are not labelled.
    """

    names: Sequence[str]
    truncated: np.ndarray
    occluded: np.ndarray
    bboxes: np.ndarray
    boxes: np.ndarray
    dont_care: np.ndarray


@dataclass(frozen=True, slots=True)
class Detections:
    """What was found in a frame: names, scores (N,), bboxes (N, 4) and boxes (N, 7), as those of `FrameTruth`."""

    names: Sequence[str]
    scores: np.ndarray
    bboxes: np.ndarray
    boxes: np.ndarray


class KittiSet:
    """All frames one after the other.

    Args:
        frames, detections: of the same frames, in the same order.
    Raises: ShapeMismatch where the arrays of a frame do not fit; ConfigError where a number is not finite.
    """

    def __init__(self, frames: Sequence[FrameTruth], detections: Sequence[Detections]) -> None:
        if len(frames) != len(detections):
            raise ShapeMismatch(f"there are {len(frames)} labelled frames and detections of {len(detections)}")
        for index, (frame, found) in enumerate(zip(frames, detections)):
            _check(frame, ("truncated", "occluded"), f"labels of frame {index}")
            _check(found, ("scores",), f"detections of frame {index}")
        self.truth_counts, self.found_counts = ([len(one.names) for one in part] for part in (frames, detections))
        self._truth_names, self._found_names = (
            np.array([name.lower() for one in part for name in one.names], dtype=np.str_)
            for part in (frames, detections)
        )
        self.truth_bboxes, self.found_bboxes = (_joined(part, "bboxes", 4) for part in (frames, detections))
        self.truth_boxes, self.found_boxes = (_upright(_joined(part, "boxes", BOX)) for part in (frames, detections))
        self.truncated, self.occluded = (_joined(frames, name) for name in ("truncated", "occluded"))
        self.scores = _joined(detections, "scores")
        self.in_dont_care = self._in_dont_care(frames)

    def truth_status(self, name: str, level: int) -> np.ndarray:
        """Whether each labelled box is counted, ignored or absent for a class (lower case) at a level, (M,)."""
        height = self.truth_bboxes[:, 3] - self.truth_bboxes[:, 1]
        hard = self.occluded > MOST_OCCLUDED[level]
        hard |= (self.truncated > MOST_TRUNCATED[level]) | (height <= LEAST_HEIGHT[level])
        status = np.where(self._truth_names == name, np.where(hard, IGNORED, COUNTED), ABSENT)
        return np.where(self._truth_names == _NEIGHBOURS.get(name, ""), IGNORED, status)

    def found_status(self, name: str, level: int) -> np.ndarray:
        """The same of each detection, (N,); one that is too low is ignored whatever its class."""
        height = np.abs(self.found_bboxes[:, 3] - self.found_bboxes[:, 1])
        return np.where(height < LEAST_HEIGHT[level], IGNORED, np.where(self._found_names == name, COUNTED, ABSENT))

    def edges(self, view: str, least: float) -> Edges:
        """Pairs of one frame that overlap by more than `least` (IoU) in a view: 2D, BEV or 3D."""
        truth, found = _same_frame(self.truth_counts, self.found_counts)
        if view == "2D":
            overlap = _image_iou(self.truth_bboxes[truth], self.found_bboxes[found])
        else:
            overlap = overlaps(self.truth_boxes[truth], self.found_boxes[found])[0 if view == "BEV" else 1]
        return Edges(truth, found, overlap).where(overlap > least)

    def _in_dont_care(self, frames: Sequence[FrameTruth]) -> np.ndarray:
        """(N,), the largest share of each detection's image box that lies in one DontCare region."""
        regions = _joined(frames, "dont_care", 4)
        region, found = _same_frame([len(frame.dont_care) for frame in frames], self.found_counts)
        boxes = self.found_bboxes[found]
        shared, own = _image_intersection(regions[region], boxes), _image_area(boxes)
        most = np.zeros(len(self.scores))
        np.maximum.at(most, found, np.divide(shared, own, out=np.zeros_like(own), where=own > 0))
        return most


def _check(part: Any, columns: tuple[str, ...], where: str) -> None:
    count = len(part.names)
    shapes = {**dict.fromkeys(columns, (count,)), "bboxes": (count, 4), "boxes": (count, BOX)}
    for name, shape in shapes.items():
        values = np.asarray(getattr(part, name))
        if values.shape != shape:
            raise ShapeMismatch(f"{where}: {name} {values.shape} do not fit {count} names; {shape} would")
        if not np.isfinite(values).all():
            raise ConfigError(f"{where}: {name} are not all finite numbers")


def _joined(parts: Sequence[Any], name: str, width: int | None = None) -> np.ndarray:
    shape = (0,) if width is None else (0, width)
    return np.concatenate([np.zeros(shape), *(np.asarray(getattr(one, name), dtype=np.float64) for one in parts)])


def _upright(boxes: np.ndarray) -> np.ndarray:
    """Camera boxes (M, 7) as `boxes` takes them. The axes are x, −z, −y: a mirror image, which keeps every overlap."""
    x, y, z, length, height, width, yaw = boxes.T
    return np.stack((x, -z, -y, length, width, height, yaw), 1)


def _same_frame(first: Sequence[int], second: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Indices of all pairs of one frame, from how many of each a frame has."""
    a, b = np.asarray(first, dtype=np.int64), np.asarray(second, dtype=np.int64)
    many = np.repeat(a, b)  # partners of each of the second
    start = np.repeat(np.cumsum(a) - a, b)
    later = np.repeat(np.arange(len(many)), many)
    within = np.arange(len(later)) - np.repeat(np.cumsum(many) - many, many)
    return np.repeat(start, many) + within, later


def _image_area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _image_intersection(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    sides = np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2])
    return np.maximum(sides, 0.0).prod(1)


def _image_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    shared = _image_intersection(first, second)
    union = _image_area(first) + _image_area(second) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
