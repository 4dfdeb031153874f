"""FID as a metric of runs, for those who have Inception's weights: the paper tier's figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from limbeck.engine.data_files import find_folder, usual_folders
from limbeck.engine.registry import DATASETS, METRICS
from limbeck.errors import ConfigError
from limbeck.multimodal.diffusion.evaluation.features import from_pixels, to_pixels
from limbeck.multimodal.diffusion.evaluation.fid import WEIGHTS, check_inception, inception_fid

FOLDER = "inception"


@METRICS.register_module()
class FIDMetric:
    """FID of generated images to real ones, by torchmetrics and torch-fidelity's Inception weights, lower is better.

    A prediction is one of `GenerationMetric`. Values are `FID` and, where predictions name them, `calls`, network calls
    an image. Generated images are kept as pixels; real ones are read anew for every value, batch by batch.

    Args:
        reference: config of the real images, such as dict(type='ImageNet', split='train', size=64).
        weights: the file of Inception's weights; None looks for it in $LIMBECK_DATA/inception and the cache folder.
        batch_size: images that Inception sees at a time.
        device: torch's name of where it does; None is a GPU where there is one.
    Raises: ConfigError without torch-fidelity, for images that do not fit or are not finite; DataMissing.
    """

    reads_teacher: ClassVar[bool] = False

    def __init__(
        self,
        reference: Mapping[str, Any],
        weights: str | None = None,
        batch_size: int = 250,
        device: str | None = None,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size of FIDMetric is 1 or more; got {batch_size}")
        self.reference, self.batch_size = dict(reference), batch_size
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.weights = inception_weights() if weights is None else Path(weights)
        check_inception(self.weights)
        self.reset()

    def reset(self) -> None:
        """Forget every image."""
        self._pixels: list[Tensor] = []
        self._calls: list[Tensor] = []

    def update(
        self, predictions: Sequence[Mapping[str, Any]], teacher: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        """Add images; the teacher's are not looked at. Raises: ConfigError."""
        for prediction in predictions:
            image: Tensor = prediction["image"]
            images = (image[None] if image.ndim == 3 else image).detach().cpu()
            if not bool(images.isfinite().all()):
                raise ConfigError(
                    "generated images have values that are not finite; look for NaN in the model's weights or its "
                    "sampler's settings"
                )
            self._pixels.append(to_pixels(images))
            if "calls" in prediction:
                self._calls.append(torch.as_tensor(prediction["calls"]).reshape(-1).cpu().double())

    def values(self) -> dict[str, float]:
        """See the class. Raises: ConfigError for fewer than two images on a side; DataMissing, CorruptFile."""
        made = (from_pixels(part) for pixels in self._pixels for part in pixels.split(self.batch_size))
        found = {"FID": inception_fid(self._real(), made, weights=self.weights, device=self.device)}
        if self._calls:
            found["calls"] = float(torch.cat(self._calls).mean())
        return found

    def per_class(self) -> dict[str, list[float]]:
        """None: a class has too few images for a covariance of 2,048 features."""
        return {}

    def _real(self) -> Iterator[Tensor]:
        data = DATASETS.make(self.reference, where="in the metric's reference")
        for rows in np.array_split(np.arange(len(data)), -(-len(data) // self.batch_size)):
            yield from_pixels(data.__getitems__(rows)["inputs"])


def inception_weights() -> Path:
    """The file in $LIMBECK_DATA/inception or the cache folder. Raises: DataMissing, saying where to put it."""
    advice = f"get torch-fidelity's {WEIGHTS} and put it into $LIMBECK_DATA/{FOLDER}, or name it as weights"
    return find_folder("Inception, whose features FID is of,", usual_folders(FOLDER, None), [WEIGHTS], advice) / WEIGHTS
