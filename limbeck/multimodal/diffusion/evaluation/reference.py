"""Real images that generated ones are compared with: their pixels, and their features, which the cache keeps."""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.engine.paths import cache_dir
from limbeck.engine.registry import DATASETS
from limbeck.engine.weights import atomic_path, sha256_json
from limbeck.errors import ConfigError, OutputError
from limbeck.multimodal.diffusion.evaluation.features import extract, load_features, net_spec
from limbeck.multimodal.diffusion.evaluation.figures import Sample, drawn
from limbeck.multimodal.diffusion.evaluation.neighbours import nearest_distances

_VERSION = 1  # of what the cache keeps
MEMORISATION_IMAGES = 1000  # whose nearest training images are looked for: all of them would take minutes


@dataclass(frozen=True, eq=False)
class RealSplit:
    """A split of a data set: pixels uint8 (N, C, H, W) and labels int64 (N,)."""

    name: str
    content_hash: str
    pixels: Tensor
    labels: Tensor


def read_split(cfg: Mapping[str, Any], where: str = "of real images") -> RealSplit:
    """A registered data set's split, whole; kept in memory for the next call.

    Args:
        cfg: such as `dict(type='FashionMNIST', split='test')`.
    Raises: UnknownName, DataMissing, CorruptFile, as the data set does; ConfigError for one without labels.
    """
    return _read_split(json.dumps(dict(cfg), sort_keys=True), where)


@lru_cache(maxsize=4)
def _read_split(cfg: str, where: str) -> RealSplit:
    data = DATASETS.make(json.loads(cfg), where=where)
    found = data.__getitems__(range(len(data)))
    labels = found["data_samples"].get("labels")
    if labels is None or labels.shape != (len(data),):
        raise ConfigError(
            f"data set {data.name}, {where}, has no class label for each image; name a classification data set"
        )
    return RealSplit(data.name, data.content_hash, found["inputs"], labels)


def reference_sample(features: str, split: RealSplit) -> Sample:
    """A split's features and the judge's classes, under the named feature net; from the cache folder where it has them.

    Raises: UnknownName; CorruptFile for weights that are not the shipped ones; ConfigError for images of another size.
    """
    spec = net_spec(features)
    key = dict(version=_VERSION, nets=spec.sha256, split=split.content_hash)

    def compute() -> dict[str, np.ndarray]:
        return dict(
            features=extract(load_features(features), split.pixels)[0],
            predicted=extract(load_features(features, "judge"), split.pixels)[1],
        )

    found = _cached(key, compute)
    return Sample(found["features"], split.labels.numpy(), found["predicted"])


def distances_to_training(reference: RealSplit, training: RealSplit) -> np.ndarray:
    """Pixel distances (n,) of up to 1,000 reference images, drawn with a fixed seed, to their nearest training images.

    Raises: ConfigError when the two have images of other shapes.
    """
    key = dict(
        version=_VERSION,
        reference=reference.content_hash,
        training=training.content_hash,
        images=MEMORISATION_IMAGES,
    )
    return _cached(key, lambda: dict(distances=to_training(reference.pixels, training)))["distances"]


def to_training(pixels: Tensor, training: RealSplit) -> np.ndarray:
    """The same for any pixels uint8 (M, C, H, W); not kept."""
    rows = drawn(len(pixels), MEMORISATION_IMAGES)
    return nearest_distances(pixels[torch.from_numpy(rows)].numpy(), training.pixels.numpy())


def _cached(key: Mapping[str, Any], compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays by name, from memory, the cache folder, or computed and kept in both; a damaged file is computed anew."""
    name = sha256_json(dict(key))
    if name not in _KEPT:
        _KEPT[name] = _on_disk(name, compute)
    return _KEPT[name]


_KEPT: dict[str, dict[str, np.ndarray]] = {}


def _on_disk(name: str, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    path = cache_dir() / "generation" / f"{name[:32]}.npz"
    # What numpy raises of a file that is not whole.
    with contextlib.suppress(OSError, ValueError, EOFError, zipfile.BadZipFile), open(path, "rb") as file:
        arrays = np.load(file, allow_pickle=False)
        return {key: arrays[key] for key in arrays.files}
    found = compute()
    with contextlib.suppress(OutputError), atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **found)  # type: ignore[arg-type]
    return found
