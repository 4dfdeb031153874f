"""Bridges: learnable or parameter-free adapters that bring a student tap to the teacher's shape, and checks of fit."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.bridges_tokens import Layout, Size, TapForm, map_to_tokens, tap_form, token_grid, tokens_to_map
from limbeck.errors import ShapeMismatch

__all__ = [
    "Bridge",
    "ConvBridge",
    "GridBridge",
    "LinearBridge",
    "PoolBridge",
    "make_bridge",
    "map_to_tokens",
    "mismatch",
    "pool_to_smaller",
    "require_same_shape",
    "resize_map",
    "suggest_bridge",
    "tap_form",
    "tokens_to_map",
]


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
    kinds = {2: "a vector (B, D)", 3: "tokens (B, N, D)", 4: "a map (B, C, H, W)"}
    axes = (len(student), len(teacher))
    have, want = (kinds.get(n, f"{n} axes") for n in axes)
    # A vector has lost the positions that tokens and maps have.
    if axes[0] != axes[1] and (axes[0] == 2 or not kinds.keys() >= {*axes}):
        return f"{have} cannot be bridged to {want}: tap layers of the same kind"
    if teacher[0] != student[0]:
        return "both sides must see the same batch"
    if axes[0] not in kinds:
        return "tap layers of equal shape"
    if axes == (4, 4):
        name = "ConvBridge"
    elif axes == (2, 2) or (axes == (3, 3) and student[1] == teacher[1]):
        return f"a LinearBridge({student[-1]} → {teacher[-1]}) would fit"
    else:
        name = "PoolBridge" if axes[1] == 2 else "GridBridge"
        for shape in (student, teacher):
            if len(shape) == 3 and token_grid(shape[1]) is None:
                return f"{shape[1]} tokens make no square grid: a {name} needs their number of prefix tokens"
    sizes = ("×".join(str(n) for n in shape[1:]) for shape in (student, teacher))
    return f"a {name}({' → '.join(sizes)}) would fit"


def make_bridge(
    student_shape: tuple[int, ...],
    teacher_shape: tuple[int, ...],
    *,
    what: str = "make_bridge",
    student_layout: Layout = "nchw",
    teacher_layout: Layout = "nchw",
    student_prefix: int | None = None,
    teacher_prefix: int | None = None,
    norm_act: bool = True,
) -> Bridge:
    """The learnable bridge that fits two taps; `bridge(student)` has the shape of `bridge.target(teacher)`.

    Vector to vector and tokens to as many tokens: `LinearBridge`. Map to map: `ConvBridge`. Map or tokens to a vector:
    `PoolBridge`. Every other pair of maps and tokens: `GridBridge`, which leaves the teacher's prefix tokens out.

    Args:
        student_shape, teacher_shape: with batch axis.
        what: names the link in errors.
        student_layout, teacher_layout: of taps with four axes, which are ambiguous: 'nchw', or timm Swin's 'nhwc'.
        student_prefix, teacher_prefix: number of class and other tokens before the patches; inferred as 0 or 1.
        norm_act: add BatchNorm and ReLU where the teacher's tap is a map (B, C, H, W).
    Raises: ShapeMismatch when no bridge fits: other batches, a vector to anything else, tokens without a square grid.
    """
    axes = (len(student_shape), len(teacher_shape))
    if student_shape[0] != teacher_shape[0] or axes in ((2, 3), (2, 4)) or not {2, 3, 4} >= {*axes}:
        raise mismatch(what, teacher_shape, student_shape)
    if axes == (4, 4) and student_layout == teacher_layout == "nchw":
        return ConvBridge(student_shape, teacher_shape, norm_act=norm_act)
    same_tokens = axes == (3, 3) and student_shape[1] == teacher_shape[1] and student_prefix == teacher_prefix
    if axes == (2, 2) or same_tokens:
        return LinearBridge(student_shape[-1], teacher_shape[-1])
    student = tap_form(student_shape, what=f"{what}: student tap", layout=student_layout, prefix=student_prefix)
    teacher = tap_form(teacher_shape, what=f"{what}: teacher tap", layout=teacher_layout, prefix=teacher_prefix)
    if teacher.kind == "vector":
        return PoolBridge(student, teacher.width)
    return GridBridge(student, teacher, norm_act=norm_act)


class Bridge(nn.Module):
    """Brings a student tap to the form that `target` gives the teacher's."""

    def target(self, teacher: Tensor) -> Tensor:
        """What the bridge's output is compared with: the teacher's whole tap, unless a bridge says less."""
        return teacher


class LinearBridge(nn.Linear, Bridge):
    """A linear map from a student vector (B, D_S) or tokens (B, N, D_S) to a teacher's width D_T."""


class ConvBridge(nn.Sequential, Bridge):
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


class GridBridge(Bridge):
    """A map or patch tokens to a map or patch tokens: resized, then a 1×1 convolution.

    Average-pooled to the teacher's grid where the student's is at least as large on both axes, else interpolated
    bilinearly. Prefix tokens of both sides are left out: they have no position.

    Args:
        student, teacher: forms of the taps; see `tap_form`.
        norm_act: add BatchNorm and ReLU where the teacher's tap is a map (B, C, H, W); never for tokens and
            (B, H, W, C) maps, which come from transformers and have both signs.
    """

    def __init__(self, student: TapForm, teacher: TapForm, *, norm_act: bool = True) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher
        self.conv = nn.Conv2d(student.width, teacher.width, 1)
        rectified = norm_act and teacher.kind == "map" and teacher.layout == "nchw"
        self.act = nn.Sequential(nn.BatchNorm2d(teacher.width), nn.ReLU()) if rectified else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """A student tap in the teacher's form, without prefix tokens."""
        x = resize_map(self.student.to_map(x), self.teacher.size)
        return self.teacher.from_map(self.act(self.conv(x)))

    def target(self, teacher: Tensor) -> Tensor:
        return self.teacher.without_prefix(teacher)


class PoolBridge(Bridge):
    """Mean over the positions of a map or of patch tokens (prefix tokens left out), then a linear map: (B, D_T)."""

    def __init__(self, student: TapForm, width: int) -> None:
        super().__init__()
        self.student = student
        self.linear = nn.Linear(student.width, width)

    def forward(self, x: Tensor) -> Tensor:
        """A student tap as a vector (B, D_T)."""
        return self.linear(self.student.to_map(x).mean((2, 3)))


def resize_map(x: Tensor, size: Size) -> Tensor:
    """A map (B, C, H, W) at another size: average-pooled where no axis grows, else bilinear; itself where it has it."""
    if x.shape[-2:] == size:
        return x
    if x.shape[-2] >= size[0] and x.shape[-1] >= size[1]:
        return F.adaptive_avg_pool2d(x, size)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def pool_to_smaller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool the larger of two maps (B, C, H, W) to the smaller one's height and width."""
    size = (min(a.shape[-2], b.shape[-2]), min(a.shape[-1], b.shape[-1]))
    return tuple(x if x.shape[-2:] == size else F.adaptive_avg_pool2d(x, size) for x in (a, b))  # type: ignore[return-value]
