"""Feature mimicry on bird's-eye-view maps: FitNet's hint (arXiv 1412.6550) on the cells that matter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limbeck.engine.bridges import ConvBridge, require_same_shape
from limbeck.engine.losses import check_maps
from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import UnknownName
from limbeck.pointcloud.methods._bev import cells_in_boxes, occupied_cells
from limbeck.pointcloud.targets import Targets3D, check_targets

MASKS = ("all", "nonempty", "boxes")


def masked_hint(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over channels and the cells of a mask of (r(F_S) − F_T)².

    Args:
        student, teacher: maps (B, C, H, W), same shape. The teacher's gradient is stopped.
        mask: (B, H, W) bool; None takes all cells.
    Returns: scalar ≥ 0, computed in float32; 0, with a graph, where the mask is empty.
    Raises: ShapeMismatch when the two differ.

    >>> masked_hint(torch.full((1, 3, 2, 2), 2.0), torch.zeros(1, 3, 2, 2), torch.eye(2)[None].bool()).item()
    4.0
    """
    require_same_shape(student, teacher, "BEVMimic")
    error = (student.float() - teacher.detach().float()).square().mean(1)
    if mask is None:
        return error.mean()
    return (error * mask).sum() / mask.sum().clamp(min=1)


@METHODS.register_module()
class BEVMimic(Method):
    """FitNet's hint on maps seen from above, of one stride on both sides; taps the neck by default, the taps are added.

    A 1×1 convolution with a bias takes the student's channels to the teacher's, also where they agree; it is trained
    with the student and dropped with the link. Most cells of a cloud are empty, and the mask says which count:
    'nonempty', those over a voxel with points; 'boxes', those in a ground-truth box, as for `SparseKD`. ASSUMPTION:
    masks and weight are ours.

    Args:
        mask: 'all', 'nonempty' or 'boxes'.
        own_cell: see `cells_in_boxes`.
        weight: factor on the term "hint".
        kwargs: see `Method`.
    Raises: UnknownName for another mask.
    """

    default_taps = (("neck[0]", "neck[0]"),)
    bridges: nn.ModuleList

    def __init__(self, *, mask: str = "all", own_cell: bool = True, weight: float = 1.0, **kwargs: Any) -> None:
        super().__init__(weight=weight, **kwargs)
        if mask not in MASKS:
            raise UnknownName("mask", mask, MASKS, "of BEVMimic")
        self.mask, self.own_cell = mask, own_cell
        self.declared_zero = self.may_be_zero
        if mask != "all":
            self.assumption = f"Only cells of the mask '{mask}' are compared; the paper has no mask."  # type: ignore[misc]

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        self.bridges = nn.ModuleList()
        for teacher, student in zip(teacher_shapes, student_shapes, strict=True):
            check_maps("BEVMimic", teacher, student)
            self.bridges.append(ConvBridge(student, teacher, norm_act=False))

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        losses = []
        targets = None if self.mask == "all" else check_targets("BEVMimic", batch.targets)
        for bridge, student, teacher in zip(self.bridges, batch.student, batch.teacher, strict=True):
            mask = None if targets is None else self._cells(targets, (teacher.shape[2], teacher.shape[3]))
            losses.append(masked_hint(bridge(student), teacher, mask))
        if self.mask == "boxes" and targets is not None:
            self.may_be_zero = self.declared_zero or not any(len(boxes) for boxes in targets.boxes)
        return {"hint": torch.stack(losses).sum()}

    def _cells(self, targets: Targets3D, size: tuple[int, int]) -> Tensor:
        if self.mask == "nonempty":
            return occupied_cells(targets, size)
        return cells_in_boxes(targets.boxes, size, targets.point_cloud_range, own_cell=self.own_cell)
