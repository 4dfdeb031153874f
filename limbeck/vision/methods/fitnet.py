"""FitNet: hints for thin deep nets (arXiv 1412.6550)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.bridges import ConvBridge, mismatch, require_same_shape
from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error between the regressed student map and the teacher's.

    L = mean over B, C_T, H, W of (r(F_S) − F_T)².

    Args:
        student: regressed map r(F_S), of the teacher's shape.
        teacher: map F_T (B, C_T, H, W). Its gradient is stopped.
    Returns: scalar ≥ 0, computed in float32.
    Raises: ShapeMismatch when the two differ.

    >>> hint_loss(torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)).item()
    1.0
    """
    require_same_shape(student, teacher, "FitNet")
    return F.mse_loss(student.float(), teacher.detach().float())


@METHODS.register_module()
class FitNet(Method):
    """Hints: taps one map a side, second stage by default, and trains a regressor r to the teacher's shape.

    r is a convolution chosen by the two sizes, then batch norm and ReLU; see `ConvBridge`. Its output is never
    negative, so tap the teacher after a ReLU. r is trained with the student and dropped with the link.

    The paper first trains the student's lower half on the hint, then the whole by KD; the code bases whose tables are
    quoted train in one stage with weight 100 beside cross entropy at weight 1, and so do we.

    Args:
        weight: factor on the term "hint".
        kwargs: see `Method`.
    """

    default_taps = (("layer2", "layer2"),)
    bridges: nn.ModuleList

    def __init__(self, *, weight: float = 100.0, **kwargs: Any) -> None:
        super().__init__(weight=weight, **kwargs)

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        pairs = list(zip(teacher_shapes, student_shapes, strict=True))
        for teacher, student in pairs:
            if teacher[0] != student[0]:
                raise mismatch("FitNet", teacher, student)
        self.bridges = nn.ModuleList([ConvBridge(student, teacher) for teacher, student in pairs])

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        triples = zip(self.bridges, batch.student, batch.teacher, strict=True)
        return {"hint": torch.stack([hint_loss(bridge(s), t) for bridge, s, t in triples]).sum()}
