"""What the tests of the methods for point clouds share: voxels, boxes and the inputs of a step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.engine.method import LinkInputs
from limbeck.pointcloud.targets import Targets3D

RANGE = (0.0, -8.0, -3.0, 16.0, 8.0, 1.0)
VOXEL = (0.5, 0.5, 4.0)  # a grid of 32 × 32


def voxels(rows: Sequence[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Coordinates (n, 4) without repetitions and points (n,) of as many voxels in each cloud as `rows` says."""
    generator = torch.Generator().manual_seed(seed)
    cells = [torch.randperm(32 * 32, generator=generator)[:n] for n in rows]
    coors = [torch.stack([torch.full_like(c, b), 0 * c, c // 32, c % 32], 1) for b, c in enumerate(cells)]
    counts = torch.randperm(10 * sum(rows), generator=generator)[: sum(rows)] + 1  # no ties
    return torch.cat(coors).int(), counts.int()


def targets(
    coors: Tensor,
    num_points: Tensor,
    boxes: Sequence[Tensor] | None = None,
    labels: Sequence[Tensor] | None = None,
    clouds: int | None = None,
) -> Targets3D:
    count = clouds or (len(boxes) if boxes is not None else int(coors[:, 0].max()) + 1)
    boxes = [torch.zeros(0, 7)] * count if boxes is None else list(boxes)
    labels = [torch.zeros(len(b), dtype=torch.int64) for b in boxes] if labels is None else list(labels)
    return Targets3D(list(boxes), list(labels), num_points, coors, RANGE, VOXEL)


def step(
    student: Sequence[Tensor], teacher: Sequence[Tensor], given: Targets3D | None = None, **more: object
) -> LinkInputs:
    return LinkInputs(student=list(student), teacher=list(teacher), targets=given, **more)  # type: ignore[arg-type]
