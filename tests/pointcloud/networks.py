"""Tiny detectors on point clouds, and batches for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limbeck.engine.adapter import Batch
from limbeck.engine.registry import MODELS
from limbeck.pointcloud.adapter import PointCloudAdapter

RANGE = (0.0, -5.12, -3.0, 10.24, 5.12, 1.0)
TINY: dict[str, Any] = dict(
    type="PointPillarsDetector", width=4, point_cloud_range=RANGE, max_points=8, max_voxels=400, momentum=0.1
)
CAR = [3.9, 1.6, 1.56]


def network(seed: int = 0, **changes: Any) -> nn.Module:
    """A detector on a grid of 32 × 32 pillars."""
    torch.manual_seed(seed)
    return MODELS.make(TINY | changes)


def cloud(count: int, seed: int, boxes: Tensor | None = None) -> Tensor:
    """Points spread over the range, and 30 in each box."""
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.tensor([*RANGE[:3], 0.0]), torch.tensor([*RANGE[3:], 1.0])
    points = [low + torch.rand(count, 4, generator=generator) * (high - low)]
    for box in [] if boxes is None else boxes:
        inside = torch.rand(30, 4, generator=generator)
        inside[:, :3] = box[:3] + (inside[:, :3] - torch.tensor([0.5, 0.5, 0.0])) * box[3:6]
        points.append(inside)
    return torch.cat(points)


def raw(**samples: Any) -> dict[str, Any]:
    """A loader's batch: a cloud with a car and a pedestrian, one without objects, one with a cyclist."""
    boxes = [
        torch.tensor([[4.0, 1.0, -1.8, *CAR, 0.1], [7.0, -3.0, -0.7, 0.8, 0.6, 1.7, 0.0]]),
        torch.zeros(0, 7),
        torch.tensor([[6.0, 2.0, -0.7, 1.7, 0.6, 1.7, 1.5]]),
    ]
    labels = [torch.tensor([2, 0]), torch.zeros(0, dtype=torch.int64), torch.tensor([1])]
    points = [cloud(300, n, own) for n, own in enumerate(boxes)]
    found = dict(boxes=boxes, labels=labels, ids=torch.tensor([7, 9, 4]), views=torch.zeros(3, dtype=torch.int64))
    return dict(inputs=points, data_samples=found | samples)


def batch(model: nn.Module, data: dict[str, Any] | None = None, *, training: bool = True) -> Batch:
    """`raw`, preprocessed for a model."""
    adapter = PointCloudAdapter()
    ready = adapter.preprocessor(model)(raw() if data is None else data, training)
    return adapter.batch(ready["inputs"], ready["data_samples"])


def losses_of(model: nn.Module, given: Batch) -> dict[str, Tensor]:
    """A member's own losses."""
    inputs = PointCloudAdapter().member_inputs(given, model, model)
    return PointCloudAdapter().forward(model, inputs, given, with_loss=True).losses
