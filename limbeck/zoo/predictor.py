"""Predict: images in, labels and probabilities out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from limbeck.errors import ConfigError, UserError
from limbeck.zoo.images import Preprocess, image_files
from limbeck.zoo.load import load_student


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


class Predictor:
    """A student and its preprocessing.

    Args:
        name: of the student.
        device: 'cpu', 'cuda', 'cuda:N' or 'auto'.
        batch_size: images at a time.
        top_k: classes listed in each prediction.
        invert: swap black and white first.
    Raises: UnknownName with near names; CorruptFile.
    """

    def __init__(
        self,
        name: str,
        device: str = "cpu",
        batch_size: int = 32,
        *,
        top_k: int = 5,
        invert: bool = False,
        zoo_dir: str | Path | None = None,
    ) -> None:
        if batch_size < 1 or top_k < 1:
            raise ConfigError(f"batch_size and top_k are at least 1; got {batch_size} and {top_k}")
        self.model = load_student(name, device=device, zoo_dir=zoo_dir)
        self.card: Any = self.model.card
        self.device = next(self.model.parameters()).device
        self.batch_size = batch_size
        self.top_k = min(top_k, len(self.card.classes))
        self.preprocess = Preprocess(self.card.preprocessing, invert=invert)

    def __call__(self, images: Any) -> list[Prediction]:
        """Predictions for one image or many, in their order; see `Preprocess` for what an image is.

        A numpy array (B, H, W, C) and a tensor (B, C, H, W) are many.

        Raises: UserError naming the file that cannot be read.
        """
        if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
            images = list(images)
        if isinstance(images, Iterable) and not isinstance(images, (str, np.ndarray, torch.Tensor)):
            return list(self.stream(images))
        return list(self.stream([images]))

    def predict_folder(self, folder: str | Path) -> list[Prediction]:
        """Predictions for every image in a folder and below it, by path.

        Raises: UserError when there is none, or for one that cannot be read.
        """
        return list(self.stream(image_files(folder)))

    def stream(self, images: Iterable[Any]) -> Iterator[Prediction]:
        """Predictions one by one, as batches are done."""
        places = enumerate(images)
        while batch := list(islice(places, self.batch_size)):
            yield from self._predict(batch)

    def _predict(self, batch: list[tuple[int, Any]]) -> Iterator[Prediction]:
        inputs = [self._input(place, image) for place, image in batch]
        with torch.inference_mode():
            chances = self.model(torch.cat(inputs).to(self.device)).float().softmax(1).cpu()
        values, indices = chances.topk(self.top_k, dim=1)
        classes = self.card.classes
        for (place, image), row, found in zip(batch, values.tolist(), indices.tolist()):
            source = str(image) if isinstance(image, (str, Path)) else place
            top = tuple((classes[i], value) for i, value in zip(found, row))
            yield Prediction(source, classes[found[0]], found[0], row[0], top)

    def _input(self, place: int, image: Any) -> torch.Tensor:
        try:
            ready = self.preprocess(image)
        except UserError as error:
            if isinstance(image, (str, Path)):
                raise
            raise UserError(f"image {place}: {error}") from error
        if len(ready) != 1:
            raise UserError(f"image {place}: one image was expected, got a batch of {len(ready)}")
        return ready
