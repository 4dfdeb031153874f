"""mmdetection3d's centre heads: Gaussian heat maps and object cells of the ground truth on a head's own grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.errors import ConfigError
from limbeck.pointcloud.targets import Targets3D

CODES = ("reg", "height", "dim", "rot")


@dataclass(slots=True)
class Centres:
    """What one task of a centre head is to predict.

    heatmap: (B, C, H, W), 1 at each object's cell, falling off as a Gaussian.
    cells: (B, O) index y · W + x of each object's cell.
    valid: (B, O) bool, which of them are objects.
    """

    heatmap: Tensor
    cells: Tensor
    valid: Tensor


def centre_head(what: str, name: str, member: nn.Module) -> Any:
    """The centre head of a member, `pts_bbox_head` or `bbox_head`.

    Raises: ConfigError when it has none.
    """
    for part in ("pts_bbox_head", "bbox_head"):
        head: Any = getattr(member, part, None)
        if head is not None and hasattr(head, "task_heads"):
            return head
    raise ConfigError(
        f"{what} reads a CenterHead's heat maps, and member {name!r} ({type(member).__name__}) has none; use a "
        "CenterPoint detector, or SparseKD for anchor heads"
    )


@torch.no_grad()
def centre_targets(head: Any, targets: Targets3D) -> list[Centres]:
    """Targets of every task, as the head makes them for its own loss.

    Args:
        head: mmdetection3d's, with its training config.
    """
    from mmdet3d.structures import LiDARInstance3DBoxes
    from mmengine.structures import InstanceData

    objects = [
        # mmdetection3d's targets have velocities, which none of our boxes have
        InstanceData(bboxes_3d=LiDARInstance3DBoxes(F.pad(boxes.float(), (0, 2)), box_dim=9), labels_3d=labels)
        for boxes, labels in zip(targets.boxes, targets.labels, strict=True)
    ]
    heatmaps, _, cells, valid = head.get_targets(objects)
    return [Centres(h, c, v.bool()) for h, c, v in zip(heatmaps, cells, valid)]
