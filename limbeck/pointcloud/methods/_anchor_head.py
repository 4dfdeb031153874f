"""mmdetection3d's anchor heads: anchors row by row, and those that are positive for the ground truth."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError
from limbeck.pointcloud.targets import Targets3D


def anchor_head(what: str, name: str, member: nn.Module) -> Any:
    """The anchor head of a member.

    Raises: ConfigError when it has none, or one of several maps.
    """
    head: Any = getattr(member, "bbox_head", None)
    if head is None or not all(hasattr(head, part) for part in ("prior_generator", "conv_cls", "anchor_target_3d")):
        raise ConfigError(
            f"{what} reads an Anchor3DHead's outputs, and member {name!r} ({type(member).__name__}) has none; use a "
            "detector as PointPillars or SECOND"
        )
    if head.prior_generator.num_levels != 1:
        raise ConfigError(f"{what}: the head of member {name!r} has several maps; use one of a single map")
    return head


def anchor_rows(maps: Tensor, width: int) -> Tensor:
    """Outputs (B, A · width, H, W) of a head as (B, H · W · A, width): cell by cell, its anchors innermost."""
    return maps.permute(0, 2, 3, 1).reshape(len(maps), -1, width)


@torch.no_grad()
def positive_anchors(head: Any, size: tuple[int, int], targets: Targets3D) -> Tensor:
    """Which anchors the head's own assignment gives to an object.

    Args:
        head: mmdetection3d's, with its training config.
        size: height and width of its map.
    Returns: (B, H · W · A) bool, in the order of `anchor_rows`.
    """
    from mmengine.structures import InstanceData

    objects = [
        InstanceData(bboxes_3d=boxes.float(), labels_3d=labels)
        for boxes, labels in zip(targets.boxes, targets.labels, strict=True)
    ]
    metas: list[dict[str, Any]] = [{}] * len(objects)
    anchors = head.get_anchors([size], metas, device=targets.coors.device)
    found = head.anchor_target_3d(
        anchors,
        objects,
        metas,
        num_classes=head.num_classes,
        label_channels=head.cls_out_channels if head.use_sigmoid_cls else 1,
        sampling=head.sampling,
    )
    labels = found[0][0].reshape(len(objects), -1)
    return (labels >= 0) & (labels < head.num_classes)
