"""Generators of records on the requests of the test split: the noise and classes that their figures are of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from limbeck.engine.config import RunConfig, parse
from limbeck.engine.evaluate import build_dataset, without_pretrained
from limbeck.engine.pixels import PixelPreprocessor, input_of
from limbeck.engine.record import RunRecord
from limbeck.engine.registry import MODELS
from limbeck.engine.weights import load_into
from limbeck.errors import ConfigError
from limbeck.leaderboard.pictures.splits import check_split
from limbeck.multimodal.diffusion.adapter import generator
from limbeck.multimodal.diffusion.evaluation.features import net_spec
from limbeck.multimodal.diffusion.evaluation.reference import RealSplit, read_split
from limbeck.multimodal.diffusion.generator import ImageGenerator


@dataclass(frozen=True, eq=False)
class Requests:
    """The first requests of a test split: labels (B,), and the seed and ids (B,) of their noise."""

    labels: Tensor
    ids: Tensor
    splits: Tensor
    seed: int
    classes: Sequence[str]

    def __len__(self) -> int:
        return len(self.labels)


def config_of(record: RunRecord) -> RunConfig:
    """A record's config. Raises: ConfigError."""
    return parse(RunConfig, dict(record.config), f"the config of {record.id}")


def requests_of(record: RunRecord, count: int | None = None) -> Requests:
    """The first `count` requests of a record's test split; all where not given.

    Raises: CorruptFile when the split is not the record's; ConfigError for another data set, or more than it has.
    """
    dataset = build_dataset(config_of(record).data, "test")
    check_split(record, "test", dataset.content_hash, record.data.content_hash)
    number = len(dataset) if count is None else count
    if not 1 <= number <= len(dataset):
        raise ConfigError(f"{record.id} is of {len(dataset)} requested images; ask for 1 to that many, not {number}")
    found = dataset.__getitems__(range(number))["data_samples"]
    if "seeds" not in found:
        raise ConfigError(f"the test split of {record.id} is not of SampleRequests, so nothing is known of its noise")
    return Requests(found["labels"], found["ids"], found["splits"], int(found["seeds"][0]), dataset.classes)


def load_generator(record: RunRecord, weights: Path) -> ImageGenerator:
    """What a run deployed, in eval mode. Raises: CorruptFile when the file is not the record's; ConfigError."""
    model = cast(nn.Module, MODELS.make(without_pretrained(config_of(record).deployed)))
    load_into(model, weights, sha256=record.student_sha256)
    return generator(model.eval())


def real_images(record: RunRecord) -> RealSplit:
    """The real split that a record's test figures are against. Raises: DataMissing, CorruptFile, UnknownName."""
    options: dict[str, Any] = dict(config_of(record).metric.options)
    net = str(options.get("features", "fashion-mnist"))
    return read_split(options.get("reference") or dict(type=net_spec(net).dataset, split="test"))


def train_images(record: RunRecord, model: ImageGenerator) -> tuple[Tensor, Tensor]:
    """The images (N, C, H, W) in [−1, 1] that a run was trained on, at the model's size, and their labels (N,).

    Raises: CorruptFile when the split is not the record's; ConfigError for one without images; DataMissing.
    """
    found = read_split(config_of(record).data.train, f"of the training images of {record.id}")
    check_split(record, "train", found.content_hash, record.data.train_hash)
    if found.pixels.shape[1:] == (0,):
        raise ConfigError(f"{record.id} was trained without images, and so says nothing of what its benchmark has")
    ready = PixelPreprocessor(*input_of(model))(dict(inputs=found.pixels, data_samples=None))
    return ready["inputs"], found.labels


def rows_by_class(labels: Tensor, classes: int, rows: int, seed: int) -> Tensor:
    """Places (rows × classes,) of images drawn at random: place k is of class k mod classes.

    Raises: ConfigError for a class with fewer images.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    found = []
    for label in range(classes):
        mine = order[labels[order] == label][:rows]
        if len(mine) < rows:
            raise ConfigError(f"class {label} has {len(mine)} real images, not {rows}; draw fewer rows")
        found.append(mine)
    return torch.stack(found, 1).flatten()
