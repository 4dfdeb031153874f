"""What SECOND (Sensors 18(10), 2018) does to single objects in training: ground-truth sampling, and noise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import pi

import numpy as np

from limbeck.errors import ConfigError, UnknownName
from limbeck.pointcloud.data.augment import Pair, turned
from limbeck.pointcloud.data.frames import CLASSES, Frame, points_in_boxes, wrapped
from limbeck.pointcloud.data.layouts import footprints_overlap

Cloud = tuple[np.ndarray, np.ndarray, np.ndarray]  # points (P, 4), boxes (M, 7), labels (M,)


class ObjectBank:
    """Objects of training frames with the points inside them, by class.

    Args:
        objects: of each class, points float32 (P, 4) and box (7,), where they stood.
    """

    def __init__(self, objects: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]]) -> None:
        self.objects = [list(of_class) for of_class in objects]

    @classmethod
    def of(cls, frames: Iterable[Frame], min_points: Mapping[str, int]) -> ObjectBank:
        """The objects that KITTI gives a level of difficulty, with at least so many points."""
        found: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in CLASSES]
        for frame in frames:
            labels = frame.labels
            chosen = np.flatnonzero((labels >= 0) & (frame.difficulties() >= 0))
            for row, inside in zip(chosen, points_in_boxes(frame.points, frame.boxes[chosen])):
                label = int(labels[row])
                if inside.sum() >= max(min_points.get(CLASSES[label], 1), 1):
                    found[label].append((frame.points[inside], frame.boxes[row]))
        return cls(found)


@dataclass(frozen=True, slots=True)
class GTSampling:
    """Ground-truth sampling: fills a cloud up with objects of other training frames, where those stood.

    A class with fewer objects than its count gets as many as are missing. One whose footprint meets that of an object
    or of another drawn one is left out, and the cloud's points inside the others give way to theirs. They keep their
    height: the variant of mmdetection3d that puts them onto an estimated ground plane is not here. ASSUMPTION: each
    frame draws anew, without repetition; mmdetection3d goes through all objects before one comes again.

    Args:
        counts: objects of a class, by name, up to which a cloud is filled; classes in this order. The default is
            mmdetection3d's for PointPillars on KITTI.
        min_points: that an object has, by class; 5 where not given.
    Raises: ConfigError, UnknownName.
    """

    counts: Mapping[str, int] = field(default_factory=lambda: dict(Car=15, Pedestrian=15, Cyclist=15))
    min_points: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        for option, values in (("counts", self.counts), ("min_points", self.least)):
            for name, value in values.items():
                if name not in CLASSES:
                    raise UnknownName("class", name, CLASSES, f"in {option} of gt_sampling")
                if not isinstance(value, int) or value < 1:
                    raise ConfigError(f"{option} of gt_sampling is 1 or more for each class; got {value} for {name}")

    @property
    def least(self) -> Mapping[str, int]:
        """Points that an object of each class has at least."""
        return dict.fromkeys(CLASSES, 5) | dict(self.min_points or {})

    def __call__(self, cloud: Cloud, obstacles: np.ndarray, bank: ObjectBank, rng: np.random.Generator) -> Cloud:
        """Cloud, boxes and labels with the drawn objects behind the own ones.

        Args:
            obstacles: boxes (N, 7) of all objects of the frame, those of other types as well.
        """
        points, boxes, labels = cloud
        added: list[tuple[np.ndarray, np.ndarray, int]] = []
        for name, count in self.counts.items():
            label = CLASSES.index(name)
            stock = bank.objects[label]
            missing = min(max(count - int((labels == label).sum()), 0), len(stock))
            drawn = [stock[k] for k in rng.permutation(len(stock))[:missing]] if missing else []
            taken = np.concatenate([obstacles, *(box[None] for _, box, _ in added)])
            added += [(*drawn[k], label) for k in free_places([box for _, box in drawn], taken)]
        if not added:
            return cloud
        pasted = np.stack([box for _, box, _ in added]).astype(boxes.dtype)
        kept = points[~points_in_boxes(points, pasted).any(0)]
        return (
            np.concatenate([*(own for own, _, _ in added), kept]),
            np.concatenate([boxes, pasted]),
            np.concatenate([labels, np.array([label for *_, label in added], labels.dtype)]),
        )


def free_places(boxes: Sequence[np.ndarray], taken: np.ndarray) -> list[int]:
    """Which of some boxes (7,) can stand among others (N, 7), in order.

    One that meets any that stands, or any that is not yet left out, is left out, as in mmdetection3d.
    """
    if not len(boxes):
        return []
    found = np.stack(boxes)
    blocked = np.any(footprints_overlap(found, taken), axis=1) if len(taken) else np.zeros(len(found), bool)
    among = footprints_overlap(found, found)
    np.fill_diagonal(among, False)
    free = []
    for k in range(len(found)):
        if blocked[k] or among[k].any():
            among[:, k] = False
        else:
            free.append(k)
    return free


@dataclass(frozen=True, slots=True)
class ObjectNoise:
    """Moves and turns each object on its own, with its points; the defaults are mmdetection3d's for KITTI.

    An object takes the first of its tries in which its footprint meets no other object's, and stays where none fits.

    Args:
        translation: standard deviations along x, y, z in metres. turn: largest angle in radians, to either side, about
            the object's own centre. tries: of each object.
    Raises: ConfigError.
    """

    translation: Sequence[float] = (1.0, 1.0, 0.5)
    turn: float = pi / 4
    tries: int = 100

    def __post_init__(self) -> None:
        if len(self.translation) != 3 or min(self.translation) < 0:
            raise ConfigError(f"object_noise translation is three deviations, 0 or more; got {tuple(self.translation)}")
        if not 0 <= self.turn <= pi or self.tries < 1:
            raise ConfigError(f"object_noise needs turn in 0 to π and tries >= 1; got {self.turn} and {self.tries}")

    def __call__(self, points: np.ndarray, boxes: np.ndarray, rng: np.random.Generator) -> Pair:
        """Points (P, ≥ 3) and boxes (M, 7), moved; the points of two objects that share some go with the first."""
        if not len(boxes):
            return points, boxes
        points, boxes = points.copy(), boxes.copy()
        inside = points_in_boxes(points, boxes)
        inside &= np.cumsum(inside, 0) == 1
        for row, own in enumerate(inside):
            shifts = rng.normal(size=(self.tries, 3)) * self.translation
            angles = rng.uniform(-self.turn, self.turn, self.tries)
            tried = np.repeat(boxes[None, row].astype(np.float64), self.tries, 0)
            tried[:, :3] += shifts
            tried[:, 6] += angles
            others = np.delete(boxes, row, 0)
            fits = ~footprints_overlap(tried, others).any(1) if len(others) else np.ones(self.tries, bool)
            if not fits.any():
                continue
            first = int(fits.argmax())
            centre = boxes[row, :3].copy()
            local = points[own]
            local[:, :3] -= centre
            moved, _ = turned(local, boxes[:0], float(angles[first]))
            moved[:, :3] += centre + shifts[first]
            points[own] = moved
            boxes[row, :3] = centre + shifts[first]
            boxes[row, 6] = wrapped(np.float64(boxes[row, 6]) + angles[first])
        return points, boxes
