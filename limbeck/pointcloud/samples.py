"""What a loader's batch of clouds holds, checked: points, and ground truth as detectors and methods read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.pointcloud.targets import Targets3D
from limbeck.pointcloud.voxels import Voxels

BOX = 7


def read_targets(inputs: Voxels, samples: Mapping[str, Any]) -> Targets3D | None:
    """The targets of voxelised clouds from their `data_samples`; None where these have no boxes.

    Boxes whose centre is outside the range along x or y are left out.

    Raises: ShapeMismatch when the parts do not belong together; ConfigError, naming the sample, for a box that is not
        finite or has no size.
    """
    boxes, labels, ids, grid = samples.get("boxes"), samples.get("labels"), samples.get("ids"), inputs.grid
    if boxes is None:
        return None
    if labels is None:
        raise ConfigError("data_samples have boxes without labels; a batch of 3D detection needs both")
    if not len(boxes) == len(labels) == len(inputs):
        raise ShapeMismatch(
            f"{len(boxes)} lists of boxes, {len(labels)} of labels do not fit {len(inputs)} clouds; one a cloud would"
        )
    for row, (one, its) in enumerate(zip(boxes, labels)):
        _check_boxes(one, its, sample_name(ids, row))
    inside = [grid.holds(one) for one in boxes]
    return Targets3D(
        boxes=[one[kept].float() for one, kept in zip(boxes, inside)],
        labels=[its[kept].long() for its, kept in zip(labels, inside)],
        num_points=inputs.num_points,
        coors=inputs.coors,
        point_cloud_range=grid.point_cloud_range,
        voxel_size=grid.voxel_size,
    )


def _check_boxes(boxes: Tensor, labels: Tensor, where: str) -> None:
    if boxes.dim() != 2 or boxes.shape[1] != BOX or labels.shape != boxes.shape[:1]:
        raise ShapeMismatch(
            f"{where} has boxes {tuple(boxes.shape)} and labels {tuple(labels.shape)}; (M, 7) and (M,) would fit"
        )
    wrong = ~(boxes.isfinite().all(1) & (boxes[:, 3:6] > 0).all(1))
    if bool(wrong.any()):
        box = [round(n, 2) for n in boxes[wrong][0].tolist()]
        raise ConfigError(f"{where} has box {box}, which is not finite or has a size of 0 or less; drop such boxes")


def check_points(points: Sequence[Tensor], ids: Tensor | None) -> None:
    """Raises: ShapeMismatch, ConfigError, naming the sample, unless every cloud is (P, 4) and finite."""
    for row, cloud in enumerate(points):
        if cloud.dim() != 2 or cloud.shape[1] != 4:
            raise ShapeMismatch(
                f"{sample_name(ids, row)} has points {tuple(cloud.shape)}; x, y, z, reflectance would fit"
            )
        if not bool(cloud.isfinite().all()):
            raise ConfigError(f"{sample_name(ids, row)} has a point that is not finite; drop such points")


def sample_name(ids: Tensor | None, row: int) -> str:
    """How an error calls a cloud of a batch."""
    return f"cloud {row} of the batch" if ids is None else f"sample {int(ids[row])}"
