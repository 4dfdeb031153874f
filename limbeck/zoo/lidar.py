"""3D detection on LiDAR clouds: what is found in one, as boxes, picture, JSON and page, and what finds it."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from limbeck.engine.registry import ADAPTERS
from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.zoo.clouds import CloudPreprocess, named, to_points

if TYPE_CHECKING:
    from PIL.Image import Image

    from limbeck.zoo.card import Card

SCORE = 0.3  # of a detection that is shown
BATCH = 4  # clouds at most; the maps of one may be as large as those of a hundred images
COLUMNS = ("x", "y", "z", "l", "w", "h", "yaw")
FRAME = (
    "LiDAR: x forward, y left, z up from the sensor, in metres; z is of the bottom's centre, l, w, h are length, width "
    "and height, yaw is about z, counter-clockwise from x, in radians"
)


@dataclass(frozen=True, slots=True, eq=False)
class LidarPrediction:
    """The N objects that a detector finds in one cloud, surest first.

    source: the path as given, or the cloud's place in the input.
    points, seen: how many points the cloud has, and how many of them lie in the detector's range.
    boxes: float32 (N, 7) in the LiDAR frame, metres: x, y, z of the bottom centre, length, width, height, yaw.
    labels, scores: of each box its class, and how sure the detector is, float32 (N,) from 0 to 1.
    classes, palette: of the student; one RGB colour a class.
    extent: the range, x, y, z of its lowest corner, then of its highest one.
    cloud: the path, which pictures read again, or a copy of the points (P, 4).
    """

    source: str | int
    points: int
    seen: int
    boxes: np.ndarray
    labels: tuple[str, ...]
    scores: np.ndarray
    classes: tuple[str, ...] = field(repr=False)
    palette: tuple[tuple[int, int, int], ...] = field(repr=False)
    extent: tuple[float, ...] = field(repr=False)
    cloud: Any = field(repr=False)

    @property
    def counts(self) -> dict[str, int]:
        """Class → how many, most first; classes that do not occur are left out."""
        return dict(Counter(self.labels).most_common())

    @property
    def colours(self) -> list[tuple[int, int, int]]:
        """One RGB a box."""
        known = dict(zip(self.classes, self.palette))
        return [known[label] for label in self.labels]

    def read_points(self) -> np.ndarray:
        """The cloud, float32 (P, 4). Raises: UserError when its file is gone, ShapeMismatch when it has changed."""
        found = to_points(self.cloud)
        if len(found) != self.points:
            raise ShapeMismatch(
                f"{self.source} has {len(found)} points, and boxes are of a cloud of {self.points}; "
                "predict the cloud again if it has changed since"
            )
        return found

    def overlay(self) -> Image:
        """The range from above, x upwards and y to the left: points grey by height, boxes by class, rings each 10 m.

        Raises: as `read_points`.
        """
        from limbeck.zoo.scene import draw_above

        return draw_above(self)

    def page(self) -> str:
        """A self-contained HTML page with the cloud and its boxes in 3D, to be turned by the mouse.

        Raises: as `read_points`.
        """
        from limbeck.zoo.scene import scene_page

        return scene_page(self)

    def to_dict(self) -> dict[str, Any]:
        """The prediction as JSON values: source, points, the frame in words; of each detection class, score and box."""
        rows = zip(self.labels, self.scores.tolist(), self.boxes.tolist())
        found = [{"class": label, "score": score} | dict(zip(COLUMNS, box)) for label, score, box in rows]
        return dict(source=self.source, points=self.points, points_in_range=self.seen, frame=FRAME, detections=found)


class CloudDetector:
    """Boxes in clouds, by a 3D detector of the zoo; `load_student` gives it as the student's `detect`.

    Args:
        model: the student.
        card: its card.
    """

    def __init__(self, model: nn.Module, card: Card) -> None:
        self.model, self.card = model, card
        self.preprocess = CloudPreprocess(cast(Any, card.voxels))
        self._adapter: Any = ADAPTERS.make(dict(type="PointCloudAdapter"))

    def __call__(self, cloud: Any, *, score: float = SCORE) -> LidarPrediction:
        """What is found in one cloud: a .bin file, an array or a tensor (P, 4).

        Args:
            score: detections that score less are left out; those under the detector's `score_thr`, mostly 0.1, always.
        Raises: UserError for what is not a cloud; ConfigError for a score that is not from 0 to 1.
        """
        return next(self.stream([cloud], score=score))

    def stream(
        self, clouds: Iterable[Any], *, score: float = SCORE, batch_size: int = BATCH
    ) -> Iterator[LidarPrediction]:
        """Predictions one by one, as batches of `batch_size` clouds, 4 at most, are done."""
        if not 0 <= score <= 1:
            raise ConfigError(f"score is from 0 to 1, the least of a detection; got {score:g}")
        places = enumerate(clouds)
        while batch := list(islice(places, min(batch_size, BATCH))):
            yield from self._detect(batch, score)

    def _detect(self, batch: Sequence[tuple[int, Any]], score: float) -> Iterator[LidarPrediction]:
        sources = [str(cloud) if isinstance(cloud, (str, Path)) else place for place, cloud in batch]
        points = [self._points(source, cloud) for source, (_, cloud) in zip(sources, batch)]
        seen = [
            int(named(source, lambda one=one: self.preprocess.seen(one)).sum()) for source, one in zip(sources, points)
        ]
        inputs = self.preprocess.voxels(points, next(self.model.parameters()).device)
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mmdetection3d's anchors call torch in a way that is to change
            (found,) = self._adapter.predict(self.model, inputs, self._adapter.batch(inputs, None))
        classes = self.card.classes
        for row, source in enumerate(sources):
            chosen = (found["pred"][row] >= 0) & (found["scores"][row] >= score)
            yield LidarPrediction(
                source,
                len(points[row]),
                seen[row],
                found["boxes"][row][chosen].numpy(),
                tuple(classes[label] for label in found["pred"][row][chosen].tolist()),
                found["scores"][row][chosen].numpy(),
                classes,
                cast(Any, self.card.palette),
                self.preprocess.spec.point_cloud_range,
                batch[row][1] if isinstance(source, str) else points[row].copy(),
            )

    def _points(self, source: str | int, cloud: Any) -> np.ndarray:
        # a file's errors name it already
        return to_points(cloud) if isinstance(source, str) else named(source, lambda: to_points(cloud))
