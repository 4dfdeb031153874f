"""Bridges: learnable or parameter-free adapters that bring a student tap to the teacher's shape, and checks of fit."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.errors import ShapeMismatch


def require_same_shape(student: Tensor, teacher: Tensor, what: str) -> None:
    """Check that two tensors have one shape.

    Raises: ShapeMismatch, with both shapes and the bridge that would fit.
    """
    if student.shape != teacher.shape:
        raise mismatch(what, tuple(teacher.shape), tuple(student.shape))


def mismatch(what: str, teacher: tuple[int, ...], student: tuple[int, ...]) -> ShapeMismatch:
    """The error for two shapes that do not fit, naming the bridge that would."""
    return ShapeMismatch(
        f"{what}: teacher tap {teacher} and student tap {student} do not fit; {suggest_bridge(teacher, student)}"
    )


def suggest_bridge(teacher: tuple[int, ...], student: tuple[int, ...]) -> str:
    """Say which bridge would bring a student tap of one shape to a teacher tap of another."""
    if len(teacher) != len(student):
        kinds = {2: "a vector (B, D)", 3: "tokens (B, N, D)", 4: "a map (B, C, H, W)"}
        have, want = (kinds.get(len(s), f"{len(s)} axes") for s in (student, teacher))
        return f"{have} cannot be bridged to {want}: tap layers of the same kind"
    if teacher[0] != student[0]:
        return "both sides must see the same batch"
    if len(teacher) == 2:
        return f"a LinearBridge({student[1]} → {teacher[1]}) would fit"
    if len(teacher) == 4:
        return (
            f"a ConvBridge({student[1]}×{student[2]}×{student[3]} → {teacher[1]}×{teacher[2]}×{teacher[3]}) would fit"
        )
    return "tap layers of equal shape"


class LinearBridge(nn.Linear):
    """A linear map from a student vector (B, D_S) to a teacher's width (B, D_T)."""


class ConvBridge(nn.Sequential):
    """A convolution, optional batch norm and ReLU from a student map to the teacher's shape (FitNet's regressor).

    The kernel follows the sizes: 1×1 where they agree; 3×3 with stride 2 where the student's map is twice as large;
    transposed 4×4 with stride 2 where it is half; an unpadded (1 + H_S − H_T) kernel where it is larger otherwise.

    Args:
        student_shape, teacher_shape: (B, C, H, W) each.
        norm_act: add BatchNorm and ReLU.
    Raises: ShapeMismatch when the student's map is smaller by a factor other than two.
    """

    def __init__(
        self, student_shape: tuple[int, ...], teacher_shape: tuple[int, ...], *, norm_act: bool = True
    ) -> None:
        if len(student_shape) != 4 or len(teacher_shape) != 4:
            raise mismatch("ConvBridge", teacher_shape, student_shape)
        (_, c_s, h_s, w_s), (_, c_t, h_t, w_t) = student_shape, teacher_shape
        conv: nn.Module
        if (h_s, w_s) == (2 * h_t, 2 * w_t):
            conv = nn.Conv2d(c_s, c_t, 3, stride=2, padding=1)
        elif (2 * h_s, 2 * w_s) == (h_t, w_t):
            conv = nn.ConvTranspose2d(c_s, c_t, 4, stride=2, padding=1)
        elif h_s >= h_t and w_s >= w_t:
            conv = nn.Conv2d(c_s, c_t, (1 + h_s - h_t, 1 + w_s - w_t))
        else:
            raise ShapeMismatch(
                f"ConvBridge: one convolution cannot bring student tap {student_shape} to teacher tap {teacher_shape}; "
                f"a student map of exactly half the teacher's {h_t}×{w_t}, or one as large or larger, would fit"
            )
        super().__init__(conv, *([nn.BatchNorm2d(c_t), nn.ReLU()] if norm_act else []))


def pool_to_smaller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool the larger of two maps (B, C, H, W) to the smaller one's height and width."""
    size = (min(a.shape[-2], b.shape[-2]), min(a.shape[-1], b.shape[-1]))
    return tuple(x if x.shape[-2:] == size else F.adaptive_avg_pool2d(x, size) for x in (a, b))  # type: ignore[return-value]
