"""What methods of several tasks share: checks and sizes of logits, maps and labels; hierarchical context loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.engine.bridges import require_same_shape
from limbeck.errors import ConfigError, ShapeMismatch

POOLED_SIZES = (4, 2, 1)
RESIZED = "The student's map is resized to the teacher's; published pairs have maps of one size."
IGNORE = 255  # label of pixels that are no class; the dense tasks' data sets, losses and metrics agree on it


def hcl_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Hierarchical context loss: squared error of two maps at full size and after pooling to 4, 2 and 1 pixels a side.

    H = [MSE(S, T) + Σ_i 2^-i · MSE(pool_l S, pool_l T)] / (1 + Σ_i 2^-i), i = 1, 2, … over the sizes l < H in falling
    order: a size that is skipped uses up no power. MSE is the mean over all elements; pool is adaptive average pooling.
    A constant difference δ gives δ² whatever the size.

    Args:
        student, teacher: maps (B, C, H, W) of one shape. The teacher's gradient is stopped.
    Returns: scalar ≥ 0, computed in float32.
    Raises: ShapeMismatch when they are no maps or differ.

    >>> import torch
    >>> hcl_loss(torch.full((2, 3, 8, 8), 0.5), torch.zeros(2, 3, 8, 8)).item()
    0.25
    """
    require_same_shape(student, teacher, "hierarchical context loss")
    if student.dim() != 4:
        raise ShapeMismatch(
            f"the hierarchical context loss compares maps (B, C, H, W); got {tuple(student.shape)} on both sides"
        )
    s, t = student.float(), teacher.detach().float()
    pooling, total = _pooling(s.shape[2], s.shape[3])
    loss = F.mse_loss(s, t)
    if pooling.numel():
        with torch.autocast(s.device.type, enabled=False):
            pooled = (s - t).flatten(2) @ pooling.to(s.device)  # it is linear: the difference in place of both maps
        loss = loss + pooled.square().sum() / (s.shape[0] * s.shape[1])
    return loss / total


@lru_cache(maxsize=64)
def _pooling(height: int, width: int) -> tuple[Tensor, float]:
    """All pooling of `hcl_loss` as one matrix, and the sum of the weights.

    Returns: (H · W, Σ l²), a column a bin, times √(weight / l²): the squares of a map's products add up to the weighted
    mean squares of its pooled maps. Without columns where nothing is pooled.
    """
    with torch.inference_mode(False), torch.device("cpu"):  # what is kept must be of use to any caller
        columns, weight, total = [torch.empty(height * width, 0)], 1.0, 1.0
        for size in POOLED_SIZES:
            if size < height:
                weight /= 2
                total += weight
                rows, across = (F.adaptive_avg_pool1d(torch.eye(n)[:, None], size)[:, 0] for n in (height, width))
                columns.append(torch.kron(rows, across) * math.sqrt(weight / size**2))
        return torch.cat(columns, 1), total


def check_logits(what: str, teacher: tuple[int, ...], student: tuple[int, ...], *, axes: Sequence[int] = (2,)) -> None:
    """Check that two logit shapes are of one batch, the same two classes or more, and an allowed number of axes.

    Args:
        what: the method, for the error.
        axes: 2 for (B, C), 4 for (B, C, H, W), whose H and W may differ: see `fit_logits`.
    Raises: ShapeMismatch, with both shapes and what would fit.
    """
    forms = " or ".join({2: "(B, C)", 4: "(B, C, H, W)"}[n] for n in axes)
    if len(teacher) not in axes or len(student) not in axes or len(teacher) != len(student):
        hint = f"tap logits {forms} on both sides"
    elif teacher[0] != student[0]:
        hint = "both sides must see the same batch"
    elif teacher[1] != student[1]:
        hint = f"a student head of {teacher[1]} classes, as the teacher's, would fit"
    elif teacher[1] < 2:
        hint = (
            "one class has probability 1 whatever its logit, so that there is nothing to learn: two or more would fit"
        )
    else:
        return
    raise ShapeMismatch(f"{what}: teacher logits {teacher} and student logits {student} do not fit; {hint}")


def check_maps(what: str, teacher: tuple[int, ...], student: tuple[int, ...]) -> None:
    """Check that two shapes are maps (B, C_T, h, w) and (B, C_S, h, w): of one batch and one size, of any widths.

    Args:
        what: the method, for the error.
    Raises: ShapeMismatch, with both shapes and what would fit.
    """
    if len(teacher) != 4 or len(student) != 4 or teacher[0] != student[0] or teacher[2:] != student[2:]:
        raise ShapeMismatch(
            f"{what}: teacher map {teacher} and student map {student} do not fit; "
            "maps (B, C, h, w) of one batch and one size would: tap layers of the same stride"
        )


def resize_bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    """A map (B, C, H, W) at another size in float32, corners not aligned; its own numbers where it has that size."""
    x = x.float()
    return x if tuple(x.shape[2:]) == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def fit_logits(student: Tensor, teacher: Tensor) -> Tensor:
    """The student's dense logits, or another map, at the height and width of the teacher's.

    Bilinear, corners not aligned, in float32. ASSUMPTION: published pairs have logits of one size.

    Args:
        student, teacher: maps (B, C, H, W), or vectors (B, C), which have no size.
    Returns: the student's tensor itself where there is nothing to resize.

    >>> import torch
    >>> fit_logits(torch.tensor([[[[0.0, 4.0]]]]), torch.zeros(1, 1, 1, 4))
    tensor([[[[0., 1., 3., 4.]]]])
    """
    if student.dim() != 4 or teacher.dim() != 4 or student.shape[2:] == teacher.shape[2:]:
        return student
    return resize_bilinear(student, (teacher.shape[2], teacher.shape[3]))


def fit_labels(what: str, labels: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Label maps at the size of a map, by nearest.

    Args:
        what: the method, for the error.
        labels: (B, H, W) integer.
        shape: of the map, (B, C, h, w).
    Returns: int64 (B, h, w).
    Raises: ShapeMismatch when labels are no integer maps of that batch.

    >>> import torch
    >>> fit_labels("KD", torch.tensor([[[3, 4, 255, 6]]]), (1, 2, 1, 2))
    tensor([[[  3, 255]]])
    """
    if len(shape) != 4 or labels.dim() != 3 or labels.is_floating_point() or len(labels) != shape[0]:
        raise ShapeMismatch(
            f"{what}: label maps {tuple(labels.shape)} of {labels.dtype} do not fit a map {tuple(shape)}; "
            "integers (B, H, W) with a map (B, C, h, w) of the same batch would"
        )
    if tuple(labels.shape[1:]) == tuple(shape[2:]):
        return labels.long()
    return F.interpolate(labels[:, None].float(), size=(shape[2], shape[3]), mode="nearest")[:, 0].long()


def check_labels(what: str, labels: Tensor, *, batch: int, classes: int) -> None:
    """Check that labels are (batch,) integers in 0 … classes − 1.

    Raises: ShapeMismatch, with the first label that is out of range.
    """
    if tuple(labels.shape) != (batch,) or labels.is_floating_point():
        raise ShapeMismatch(
            f"{what}: labels {tuple(labels.shape)} of {labels.dtype} do not fit a batch of {batch}; "
            f"integer classes ({batch},) would (mixed or smoothed targets have no single target class)"
        )
    wrong = (labels < 0) | (labels >= classes)
    if bool(wrong.any()):
        raise ShapeMismatch(
            f"{what}: label {int(labels[wrong][0])} is not in 0 to {classes - 1}; "
            "a model with one class for each label of the data set would fit"
        )


def check_temperature(what: str, temperature: float) -> float:
    """The temperature, where it is positive.

    Raises: ConfigError otherwise.
    """
    if not temperature > 0:
        raise ConfigError(f"{what} needs temperature > 0; got {temperature}")
    return float(temperature)
