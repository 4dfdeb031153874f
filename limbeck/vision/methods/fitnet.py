"""FitNet: hints for thin deep nets (arXiv 1412.6550)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.bridges import Bridge, make_bridge, require_same_shape
from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import UnknownName


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error between the regressed student tap and the teacher's.

    L = mean over all entries of (r(F_S) − F_T)².

    Args:
        student: regressed tap r(F_S), of the teacher's shape.
        teacher: F_T: a map (B, C_T, H, W), tokens (B, N, D_T) or a vector (B, D_T). Its gradient is stopped.
    Returns: scalar ≥ 0, computed in float32.
    Raises: ShapeMismatch when the two differ.

    >>> hint_loss(torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)).item()
    1.0
    """
    require_same_shape(student, teacher, "FitNet")
    return F.mse_loss(student.float(), teacher.detach().float())


@METHODS.register_module()
class FitNet(Method):
    """Hints: taps one layer a side, second stage by default, and trains a regressor r to the teacher's shape.

    Between two maps, r is a convolution chosen by the two sizes, then batch norm and ReLU; see `ConvBridge`. Its output
    is never negative, so tap the teacher after a ReLU. Across families (CNN, ViT, Mixer, Swin), and for vectors,
    `make_bridge` chooses r: our extension, as the paper has CNNs alone; the teacher's class token is left out unless
    both sides have as many tokens. r is trained with the student and dropped with the link. Maps that no ReLU follows,
    those of feature pyramids, want `bridge=dict(norm_act=False)`, the convolution alone.

    The paper first trains the student's lower half on the hint, then the whole by KD; the code bases whose tables are
    quoted train in one stage with weight 100 beside cross entropy at weight 1, and so do we.

    Args:
        weight: factor on the term "hint".
        bridge: how to read the taps where their shapes do not say it: `student_layout`, `teacher_layout` ('nhwc' for
            Swin's maps), `student_prefix`, `teacher_prefix` (of tokens); or `norm_act`; see `make_bridge`.
        kwargs: see `Method`.
    """

    default_taps = (("layer2", "layer2"),)
    bridges: nn.ModuleList

    def __init__(self, *, weight: float = 100.0, bridge: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(weight=weight, **kwargs)
        self.bridge = dict(bridge or {})
        known = ("student_layout", "teacher_layout", "student_prefix", "teacher_prefix", "norm_act")
        for key in self.bridge:
            if key not in known:
                raise UnknownName("bridge option", key, known, "of FitNet")

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        pairs = zip(teacher_shapes, student_shapes, strict=True)
        self.bridges = nn.ModuleList([make_bridge(s, t, what="FitNet", **self.bridge) for t, s in pairs])

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        triples = zip(self.bridges, batch.student, batch.teacher, strict=True)
        return {"hint": torch.stack([hint_loss(b(s), cast(Bridge, b).target(t)) for b, s, t in triples]).sum()}
