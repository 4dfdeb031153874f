"""A small data set whose labels can be poisoned, and what the vision-language tests build of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.engine.adapter import Batch
from limbeck.engine.distiller import Distiller
from limbeck.engine.inputs import describe
from limbeck.engine.registry import DATASETS, MODELS
from limbeck.vision.data.base import ArrayDataset

KNOWN = (0, 5, 10, 15, 20, 25)  # ids whose labels no poison touches; two of each class


@DATASETS.register_module()
class Tones(ArrayDataset):
    """Three classes of noise (1, 8, 8), told apart by their mean; `poison` shuffles all labels but those of KNOWN."""

    name = "tones"

    def __init__(
        self,
        split: str,
        augment: Mapping[str, Any] | None = None,
        views: int = 0,
        seed: int = 0,
        size: int = 60,
        poison: int | None = None,
        skip: int | None = None,
    ) -> None:
        self.classes = ["dark", "grey", "light"]
        draw = np.random.default_rng(["train", "val", "test"].index(split))
        labels = np.arange(size) % 3
        pixels = draw.normal(80 + 40 * labels[:, None, None, None], 40, (size, 1, 8, 8)).clip(0, 255).astype(np.uint8)
        if poison is not None:
            hidden = np.setdiff1d(np.arange(size), KNOWN)
            labels[hidden] = np.random.default_rng(poison).permutation(labels[hidden])
        if skip is not None:
            pixels, labels = pixels[labels != skip], labels[labels != skip]
        super().__init__(split, pixels, labels, augment=augment, views=views, seed=seed, limit=None)


@MODELS.register_module()
class LinearFeatures(nn.Module):
    """Pooled pixels through one linear layer, with batch norm where asked; `calls` are the sizes of its batches."""

    def __init__(self, width: int = 6, norm: bool = False) -> None:
        super().__init__()
        self.fc = nn.Linear(16, width)
        self.bn = nn.BatchNorm1d(width) if norm else nn.Identity()
        self.calls: list[int] = []
        describe(self, 0.4, 0.3, (1, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        return torch.relu(self.bn(self.fc(nn.functional.avg_pool2d(x, 2).flatten(1))))


@MODELS.register_module()
class LinearClassifier(nn.Module):
    """A teacher."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.fc = nn.Linear(64, num_classes)
        self.calls: list[int] = []
        describe(self, 0.4, 0.3, (1, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        return self.fc(x.flatten(1))


def student(kd_head: str | None = "linear", **backbone: Any) -> dict[str, Any]:
    """A student's config."""
    return dict(type="DualHead", backbone=dict(type="LinearFeatures", **backbone), num_classes=3, kd_head=kd_head)


def distiller(
    kd_head: str | None = "linear",
    *,
    link: dict[str, Any] | None = None,
    adapter: dict[str, Any] | None = None,
    task_weight: float = 0.5,
    links: bool = True,
    **backbone: Any,
) -> Distiller:
    """A teacher with random weights and a student of `student`, linked by DHO."""
    members = {"student": dict(type="trained", model=student(kd_head, **backbone))}
    if links:
        members["teacher"] = dict(type="frozen", model=dict(type="LinearClassifier"), initial_weights=True)
    return Distiller(
        members=members,
        links=[{"type": "DHO", **(link or {})}] if links else [],
        adapter={"type": "VLMAdapter", **(adapter or {})},
        task_weight=task_weight,
    )


def mixed_batch(labels: tuple[int, ...] = (0, -1, 2, -1, -1, 1), seed: int = 0) -> Batch:
    """Images with these labels, -1 unlabelled."""
    generator = torch.Generator().manual_seed(seed)
    count = len(labels)
    return Batch(
        torch.randn(count, 1, 8, 8, generator=generator),
        targets=torch.tensor(labels),
        ids=torch.arange(count),
        views=torch.zeros(count, dtype=torch.int64),
    )


def softmax(z: np.ndarray) -> np.ndarray:
    """Over the last axis, in float64."""
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)
