"""What a diffusion model is asked to make: so many images of each class, from a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from limbeck.engine.data import SPLITS, ViewDataset, content_hash
from limbeck.engine.registry import DATASETS
from limbeck.errors import ConfigError


@DATASETS.register_module()
class SampleRequests(ViewDataset):
    """Requests without pixels: `inputs` is (B, 0), `labels` go round the classes, and ids name the noise of a seed.

    The noise itself is drawn where an image is made, at the model's own size: request k of a seed has the same noise
    for every model. Val and test have noise of their own.

    As training data it is for methods that read no images. They draw noise of their own, so that the seed is no part of
    a train split's content, and runs of several seeds have one data hash.

    Args:
        classes: names in the order of labels.
        count: of requests; a multiple of the classes, so that all have as many.
        split: 'train', 'val' or 'test'.
        seed: of the noise.
        name: of the data set, as records name it.
    Raises: ConfigError, UnknownName.
    """

    def __init__(
        self, classes: Sequence[str], count: int, split: str = "test", seed: int = 0, name: str = "samples"
    ) -> None:
        self.name = name
        self.classes = list(classes)
        if not self.classes or count < 1 or count % len(self.classes):
            raise ConfigError(
                f"count of {name} is a multiple of its {len(self.classes)} classes, of which there is one or more; "
                f"got {count}"
            )
        super().__init__(split, views=1, seed=seed, augment=None)
        self.count = count
        self.labels = np.arange(count, dtype=np.int64) % len(self.classes)
        noise = [] if split == "train" else [seed]
        self.content_hash = content_hash(name, split, self.labels, np.asarray(noise, np.int64))

    def batch(self, ids: np.ndarray) -> tuple[np.ndarray, Mapping[str, Tensor]]:
        labels = torch.from_numpy(self.labels[ids])
        seed = self.seed * len(SPLITS) + SPLITS.index(self.split)  # type: ignore[arg-type]
        return np.zeros((len(ids), 0), np.uint8), {
            "labels": labels,
            "seeds": torch.full_like(labels, seed),
            "splits": torch.full_like(labels, SPLITS.index(self.split)),  # type: ignore[arg-type]
        }

    def __len__(self) -> int:
        return self.count
