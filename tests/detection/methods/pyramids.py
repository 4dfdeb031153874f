"""Two small detectors with pyramids of two levels, a batch, and a training split, for the tests of methods on maps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.detection.targets import DetectionTargets
from limbeck.engine.adapter import Batch
from limbeck.engine.method import TrainingSet
from limbeck.engine.registry import MODELS
from tests.vision.methods import conftest as common

SIZE = (32, 48)  # height and width of the images
CLASSES = 3


def make_detector(seed: int, width: int, head: str = "gfl", channels: int = 8) -> Any:
    """A ResNet-18 with maps of strides 16 and 32."""
    pytest.importorskip("mmdet", reason="needs the 'detection' extra")
    torch.manual_seed(seed)
    options = dict(head=head, channels=channels, first_stride=16, num_outs=2, stacked_convs=1, fc_channels=16, rois=16)
    size = (3, *SIZE)
    return MODELS.make(
        dict(type="ResNetDetector", base_channels=width, num_classes=CLASSES, input_size=size, **options)
    )


def detector_pair(head: str = "gfl") -> tuple[nn.Module, nn.Module]:
    """A frozen teacher and a narrower student in training, with pyramids of 8 and 6 channels."""
    return make_detector(1, 8, head).eval().requires_grad_(False), make_detector(0, 4, head, channels=6).train()


def toy_targets(count: int = 4, seed: int = 0) -> DetectionTargets:
    """One to three boxes an image."""
    generator = torch.Generator().manual_seed(seed)
    limit = torch.tensor([SIZE[1], SIZE[0]] * 2)
    corners = torch.rand(count, 3, 2, 2, generator=generator).sort(dim=2).values.flatten(2)
    boxes = corners * limit
    boxes[..., 2:] = torch.minimum(boxes[..., 2:] + 4, limit[2:])
    boxes[..., :2] = torch.minimum(boxes[..., :2], boxes[..., 2:] - 4)
    labels = torch.randint(0, CLASSES, (count, 3), generator=generator)
    labels[1:, 2] = -1
    boxes[1:, 2] = 0
    return DetectionTargets(boxes, labels, torch.tensor([SIZE] * count), SIZE)


def toy_batch(count: int = 4) -> Batch:
    """Normalised images with boxes."""
    return Batch(common.randn(count, 3, *SIZE), toy_targets(count), torch.arange(count))


def training_set(teacher: nn.Module, count: int = 6, batch: int = 4) -> TrainingSet:
    """A split whose teacher gives both levels of its pyramid."""
    images = common.randn(count, 3, *SIZE, seed=3)

    def read(name: str | None = None) -> Iterator[tuple[list[Tensor], Any, Tensor]]:
        for start in range(0, count, batch):
            rows = torch.arange(start, min(start + batch, count))
            with torch.no_grad():
                maps = teacher.extract_feat(images[rows])  # type: ignore[operator]
            yield list(maps), toy_targets(len(rows), seed=start), rows

    return TrainingSet(labels=torch.empty(0), classes=CLASSES, teacher_taps=read)
