"""Predict: images in; labels with probabilities, a class for every pixel, or boxes out; clouds in, 3D boxes out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F

from limbeck.engine.registry import ADAPTERS
from limbeck.errors import ConfigError, ShapeMismatch, UserError
from limbeck.zoo.clouds import cloud_files
from limbeck.zoo.images import Preprocess, image_files, match_channels, to_pixels
from limbeck.zoo.index import find
from limbeck.zoo.lidar import SCORE, LidarPrediction
from limbeck.zoo.load import load_student

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a student says of one image.

    source: the path as given, or the image's place in the input.
    top: the likeliest classes with their probabilities, best first.
    """

    source: str | int
    label: str
    index: int
    probability: float
    top: tuple[tuple[str, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """The prediction as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class SegmentationPrediction:
    """What a student sees in each pixel of one image.

    source: the path as given, or the image's place in the input.
    map: uint8 (H, W) at the image's own size, the class of each pixel as its place in `classes`.
    shares: class → part of the image's pixels, largest first; classes that do not occur are left out.
    classes, palette: of the student; one RGB colour a class.
    image: the path, which `overlay` reads again, or a copy of the pixels (1, C, H, W).
    """

    source: str | int
    map: np.ndarray = field(repr=False)
    shares: dict[str, float]
    classes: tuple[str, ...] = field(repr=False)
    palette: tuple[tuple[int, int, int], ...] = field(repr=False)
    image: Any = field(repr=False)

    def overlay(self) -> Image:
        """The image under its classes' colours at half opacity, with a legend of those that occur and their shares.

        Small images are drawn larger.

        Raises: UserError when the image's file is gone, ShapeMismatch when the image has changed its size.
        """
        from limbeck.zoo.overlay import draw_overlay

        return draw_overlay(_rgb(self.image), self.map, self.shares, dict(zip(self.classes, self.palette)))

    def to_dict(self) -> dict[str, Any]:
        """The prediction as JSON values, without the map: source, (height, width), shares."""
        return dict(source=self.source, size=list(self.map.shape), shares=self.shares)


@dataclass(frozen=True, slots=True, eq=False)
class DetectionPrediction:
    """The N objects that a detector finds in one image, surest first.

    source: the path as given, or the image's place in the input.
    size: the image's height and width, upright.
    boxes: float32 (N, 4), x1 y1 x2 y2 in pixels of the image at that size.
    labels, scores: of each box its class, and how sure the detector is, float32 (N,) from 0 to 1.
    classes, palette: of the student; one RGB colour a class.
    image: the path, which `overlay` reads again, or a copy of the pixels (1, C, H, W).
    """

    source: str | int
    size: tuple[int, int]
    boxes: np.ndarray
    labels: tuple[str, ...]
    scores: np.ndarray
    classes: tuple[str, ...] = field(repr=False)
    palette: tuple[tuple[int, int, int], ...] = field(repr=False)
    image: Any = field(repr=False)

    @property
    def counts(self) -> dict[str, int]:
        """Class → how many, most first; classes that do not occur are left out."""
        return dict(Counter(self.labels).most_common())

    def overlay(self) -> Image:
        """The image under its boxes in their classes' colours, with labels and scores.

        Small images are drawn larger.

        Raises: UserError when the image's file is gone, ShapeMismatch when the image has changed its size.
        """
        from limbeck.zoo.boxes import draw_boxes

        pixels = _rgb(self.image)
        if pixels.shape[:2] != self.size:
            raise ShapeMismatch(
                f"{self.source} has {pixels.shape[:2]} pixels, and boxes are of an image of {self.size}; "
                "predict the image again if it has changed since"
            )
        colours = dict(zip(self.classes, self.palette))
        texts = [f"{label} {score:.2f}" for label, score in zip(self.labels, self.scores)]
        return draw_boxes(pixels, self.boxes, texts, [colours[label] for label in self.labels])

    def to_dict(self) -> dict[str, Any]:
        """The prediction as JSON values: source, (height, width), and of each detection box, label and score."""
        rows = zip(self.boxes.tolist(), self.labels, self.scores.tolist())
        found = [dict(box=box, label=label, score=score) for box, label, score in rows]
        return dict(source=self.source, size=list(self.size), detections=found)


AnyPrediction = Prediction | SegmentationPrediction | DetectionPrediction | LidarPrediction


class Predictor:
    """A student and its preprocessing.

    Students of segmentation and detectors get the whole image, resized to their card's height and width whatever the
    image's shape. A class map is brought back to the image's own size by nearest, and boxes to its pixels. 3D detectors
    get LiDAR clouds instead of images, .bin files, arrays or tensors (P, 4), 4 of them at a time at most.

    Args:
        name: of the student, or its address or path; see `load_student`.
        device: 'cpu', 'cuda', 'cuda:N' or 'auto'.
        batch_size: images at a time.
        top_k: classes listed in each prediction; a segmentation has the shares of all.
        invert: swap black and white first.
        revision: of a Hugging Face repository; else the first digits of the sha256 that the weights must have.
        score: detections that score less are left out; those under the detector's `score_thr`, mostly 0.05, always are.
    Raises: UnknownName with near names; CorruptFile; ConfigError for options out of range, or a student that makes
        images.
    """

    def __init__(
        self,
        name: str,
        device: str = "cpu",
        batch_size: int = 32,
        *,
        top_k: int = 5,
        invert: bool = False,
        score: float = SCORE,
        revision: str | None = None,
        zoo_dir: str | Path | None = None,
    ) -> None:
        if batch_size < 1 or top_k < 1:
            raise ConfigError(f"batch_size and top_k are at least 1; got {batch_size} and {top_k}")
        if not 0 <= score <= 1:
            raise ConfigError(f"score is from 0 to 1, the least of a detection; got {score:g}")
        if find(name, revision=revision, zoo_dir=zoo_dir).generates:
            raise ConfigError(
                f"{name} makes images and reads none: call limbeck.load_student({name!r}).generate(classes), or "
                f"limbeck zoo predict {name} --classes …"
            )
        self.model = load_student(name, revision=revision, device=device, zoo_dir=zoo_dir)
        self.card: Any = self.model.card
        self.device = next(self.model.parameters()).device
        self.batch_size = batch_size
        self.top_k = min(top_k, len(self.card.classes))
        if self.card.detects_3d and invert:
            raise ConfigError(f"invert swaps black and white of images, and {name} reads LiDAR clouds; leave it out")
        self.preprocess: Any = (
            self.model.preprocess if self.card.detects_3d else Preprocess(self.card.preprocessing, invert=invert)
        )
        self.score = score

    def __call__(self, images: Any) -> list[AnyPrediction]:
        """Predictions for one image or many, in their order; see `Preprocess` for what an image is.

        A numpy array (B, H, W, C) and a tensor (B, C, H, W) are many; a cloud (P, 4) is one.

        Raises: UserError naming the file that cannot be read.
        """
        if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
            images = list(images)
        if isinstance(images, Iterable) and not isinstance(images, (str, np.ndarray, torch.Tensor)):
            return list(self.stream(images))
        return list(self.stream([images]))

    def predict_folder(self, folder: str | Path) -> list[AnyPrediction]:
        """Predictions for every image, or cloud, in a folder and below it, by path.

        Raises: UserError when there is none, or for one that cannot be read.
        """
        return list(self.stream(cloud_files(folder) if self.card.detects_3d else image_files(folder)))

    def stream(self, images: Iterable[Any]) -> Iterator[AnyPrediction]:
        """Predictions one by one, as batches are done."""
        if self.card.detects_3d:
            yield from cast(Any, self.model).detect.stream(images, score=self.score, batch_size=self.batch_size)
            return
        places = enumerate(images)
        while batch := list(islice(places, self.batch_size)):
            if self.card.detects:
                yield from self._detect(batch)
            else:
                yield from self._segment(batch) if self.card.segments else self._predict(batch)

    def _predict(self, batch: list[tuple[int, Any]]) -> Iterator[Prediction]:
        inputs = [self._input(place, image) for place, image in batch]
        with torch.inference_mode():
            chances = self.model(torch.cat(inputs).to(self.device)).float().softmax(1).cpu()
        values, indices = chances.topk(self.top_k, dim=1)
        classes = self.card.classes
        for (place, image), row, found in zip(batch, values.tolist(), indices.tolist()):
            source = _source(place, image)
            top = tuple((classes[i], value) for i, value in zip(found, row))
            yield Prediction(source, classes[found[0]], found[0], row[0], top)

    def _segment(self, batch: list[tuple[int, Any]]) -> Iterator[SegmentationPrediction]:
        inputs, kept = self._read(batch)
        with torch.inference_mode():
            maps = self.model(inputs).argmax(1).to(torch.uint8).cpu()
        classes = self.card.classes
        for (place, image), small, (size, again) in zip(batch, maps, kept):
            full = F.interpolate(small[None, None], size=size, mode="nearest-exact")[0, 0].numpy()
            counts = np.bincount(full.ravel(), minlength=len(classes))
            order = np.argsort(-counts, kind="stable")
            shares = {classes[i]: float(counts[i] / full.size) for i in order if counts[i]}
            yield SegmentationPrediction(_source(place, image), full, shares, classes, self.card.palette, again)

    def _detect(self, batch: list[tuple[int, Any]]) -> Iterator[DetectionPrediction]:
        inputs, kept = self._read(batch)
        adapter: Any = ADAPTERS.make(dict(type="DetectionAdapter"))
        with torch.inference_mode():
            (found,) = adapter.predict(self.model, inputs, adapter.batch(inputs, None))
        classes, side = self.card.classes, np.array(inputs.shape[-2:])
        for row, ((place, image), (size, again)) in enumerate(zip(batch, kept)):
            chosen = (found["pred"][row] >= 0) & (found["scores"][row] >= self.score)
            back = np.tile((np.array(size) / side)[::-1], 2)
            boxes = (found["boxes"][row][chosen].numpy() * back).clip(0, np.tile(size[::-1], 2)).astype(np.float32)
            labels = tuple(classes[label] for label in found["pred"][row][chosen].tolist())
            scores = found["scores"][row][chosen].numpy()
            yield DetectionPrediction(
                _source(place, image), size, boxes, labels, scores, classes, self.card.palette, again
            )

    def _read(self, batch: list[tuple[int, Any]]) -> tuple[torch.Tensor, list[tuple[tuple[int, int], Any]]]:
        """The network's input, and of each image its height and width and what it can be drawn from later."""
        inputs, kept = [], []
        for place, image in batch:
            pixels = self._pixels(place, image)
            inputs.append(self._input(place, pixels))
            kept.append((tuple(pixels.shape[-2:]), image if isinstance(image, (str, Path)) else pixels.clone()))
        return torch.cat(inputs).to(self.device), kept

    def _pixels(self, place: int, image: Any) -> torch.Tensor:
        with _placed(place, image):
            pixels, _ = to_pixels(image)
        if len(pixels) != 1:
            raise UserError(f"image {place}: one image was expected, got a batch of {len(pixels)}")
        return pixels

    def _input(self, place: int, image: Any) -> torch.Tensor:
        pixels = self._pixels(place, image)
        with _placed(place, image):
            return self.preprocess(pixels)


@contextmanager
def _placed(place: int, image: Any) -> Iterator[None]:
    """Say which image an error is of, where it has no path to name."""
    try:
        yield
    except UserError as error:
        if isinstance(image, (str, Path)):
            raise
        raise UserError(f"image {place}: {error}") from error


def _rgb(image: Any) -> np.ndarray:
    """An image as uint8 (H, W, 3)."""
    pixels, white = to_pixels(image)
    rgb = match_channels(pixels.float() * (255.0 / white), 3)[0].round().to(torch.uint8)
    return rgb.permute(1, 2, 0).contiguous().numpy()


def _source(place: int, image: Any) -> str | int:
    return str(image) if isinstance(image, (str, Path)) else place
