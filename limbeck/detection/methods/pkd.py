"""PKD: distillation for detectors by the Pearson correlation of features (arXiv 2207.02039)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.detection.methods._channel_statistics import standardised
from limbeck.engine.bridges import mismatch
from limbeck.engine.losses import resize_bilinear
from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import UnknownName

RESIZED_SIDES = ("student", "teacher")
BRIDGED = "A 1×1 convolution takes the student's maps to the teacher's width; published pairs have one width."


def pkd_loss(student: Tensor, teacher: Tensor, *, resized: str = "student") -> Tensor:
    """Half the mean squared error of two maps that are standardised channel by channel (equation 4).

    L = ½ mean (Ŝ − T̂)², F̂_c = (F_c − mean_c) / (std_c + 1e-6), statistics over batch and positions, std unbiased.
    With n = B · H · W values a channel and Pearson's r_c, L = (n − 1) / n · mean_c (1 − r_c) but for the 1e-6: at most
    2, and blind to a positive factor and a constant on any channel of either side. A constant channel is 0.

    Args:
        student, teacher: maps (B, C, H, W), of any sizes. The teacher's gradient is stopped.
        resized: which side is brought to the other's size, bilinearly, 'student' or 'teacher'.
    Returns: scalar ≥ 0, computed in float32.
    Raises: ShapeMismatch when they are no maps of one batch and width; UnknownName for another `resized`.

    >>> teacher = torch.tensor([[[[0.0, 1.0, 2.0, 3.0]]]])
    >>> round(pkd_loss(-5 * teacher, teacher).item(), 4)  # 2 · (n − 1) / n
    1.5
    """
    if student.dim() != 4 or teacher.dim() != 4 or student.shape[:2] != teacher.shape[:2]:
        raise mismatch("PKD", tuple(teacher.shape), tuple(student.shape))
    if resized not in RESIZED_SIDES:
        raise UnknownName("resized", resized, RESIZED_SIDES, "of PKD")
    with torch.autocast(student.device.type, enabled=False):
        s, t = student.float(), teacher.detach().float()
        if resized == "student":
            s = resize_bilinear(s, (t.shape[2], t.shape[3]))
        else:
            t = resize_bilinear(t, (s.shape[2], s.shape[3]))
        return 0.5 * F.mse_loss(standardised(s), standardised(t))


@METHODS.register_module()
class PKD(Method):
    """Correlation of features: taps maps of a pyramid, one pair a level; the levels are added.

    Levels are paired in the order of the taps, so that heterogeneous detectors may compare maps of other strides (Mask
    R-CNN's P2 with RetinaNet's P3, and so on); sizes are then brought together. Nothing is learned, unless widths
    differ: then a 1×1 convolution without bias (the loss does not see a channel's mean) is trained with the student.
    The default taps are the first four levels, as officially; the last of five is left out there.

    Official weights, from the first step to the last: one-stage detectors 10, the default here; Faster R-CNN, and
    RetinaNet with Mask R-CNN as teacher, 6. Beside CrossKD, with all five levels: GFL 6, RetinaNet 2, FCOS 2, ATSS 1.

    Args:
        resized: the side that is brought to the other's size where they differ, 'student' or 'teacher'.
        weight: factor on the term "feature".
        kwargs: see `Method`.
    Raises: UnknownName for another `resized`.
    """

    default_taps = tuple((f"neck[{level}]", f"neck[{level}]") for level in range(4))
    bridges: nn.ModuleList

    def __init__(self, *, resized: str = "student", weight: float = 10.0, **kwargs: Any) -> None:
        super().__init__(weight=weight, **kwargs)
        if resized not in RESIZED_SIDES:
            raise UnknownName("resized", resized, RESIZED_SIDES, "of PKD")
        self.resized = resized

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        self.bridges = nn.ModuleList()
        for teacher, student in zip(teacher_shapes, student_shapes, strict=True):
            if len(teacher) != 4 or len(student) != 4 or teacher[0] != student[0]:
                raise mismatch("PKD", teacher, student)
            same = teacher[1] == student[1]
            self.bridges.append(nn.Identity() if same else nn.Conv2d(student[1], teacher[1], 1, bias=False))
            if not same:
                self.assumption = BRIDGED  # type: ignore[misc]  # of this pair alone

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        losses = []
        for bridge, student, teacher in zip(self.bridges, batch.student, batch.teacher, strict=True):
            with torch.autocast(student.device.type, enabled=False):
                student = bridge(student.float())
            losses.append(pkd_loss(student, teacher, resized=self.resized))
        return {"feature": torch.stack(losses).sum()}
