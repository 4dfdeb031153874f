"""RKD: relational knowledge distillation (arXiv 1904.05068)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch


def rkd_distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 between the two sides' distances of the samples from each other.

    L_D = mean over all B² pairs, i = j among them, of smoothL1(ψ_S − ψ_T), ψ as in `relative_distances`, β = 1.
    Invariant to translation, rotation and positive scaling of either side. Repeating the batch changes it.

    Args:
        student, teacher: features (B, D_S) and (B, D_T) of one batch, B ≥ 2. The teacher's gradient is stopped.
    Returns: scalar ≥ 0, computed in float32.
    Raises: ShapeMismatch when one is no vector, the batches differ or hold a single sample.

    >>> x = torch.randn(4, 3)
    >>> rkd_distance_loss(x, 2.0 * x.flip(1) + 1.0).item() < 1e-9
    True
    """
    _check_features(tuple(teacher.shape), tuple(student.shape))
    return F.smooth_l1_loss(relative_distances(student), relative_distances(teacher.detach()))


def rkd_angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 between the two sides' angles in all triplets of samples.

    L_A = mean over all B³ triplets of smoothL1(a_S − a_T), a as in `angles`, β = 1. Triplets with a sample twice are
    counted; B = 2 has no others, and loss 0. Takes O(B³ + B² D) memory.

    Args, Returns, Raises: as of `rkd_distance_loss`.
    """
    _check_features(tuple(teacher.shape), tuple(student.shape))
    return F.smooth_l1_loss(angles(student), angles(teacher.detach()))


def relative_distances(x: Tensor) -> Tensor:
    """ψ_ij = d_ij / μ, d the Euclidean distances, μ the mean of those between two samples: (B, D) to (B, B).

    Squared distances have a floor of 1e-12 and no gradient below it, which equal samples need. μ has a gradient.
    """
    x = x.float()
    squared = (x[:, None] - x[None]).square().sum(dim=2)
    same = torch.eye(len(x), dtype=torch.bool, device=x.device)
    distances = squared.clamp_min(1e-12).sqrt().masked_fill(same, 0.0)
    return distances / (distances.sum() / (len(x) * (len(x) - 1)))


def angles(x: Tensor) -> Tensor:
    """a_ijk = ⟨e_ij, e_ik⟩, the cosine at sample i between samples j and k: (B, D) to (B, B, B).

    e_ij is the unit vector from i to j; 0 without gradient where the two are equal, since it has no direction there.
    """
    # autocast would do the product in half precision
    with torch.autocast(x.device.type, enabled=False):
        x = x.float()
        difference = x[None] - x[:, None]
        length = difference.norm(dim=2, keepdim=True)
        e = torch.where(length > 1e-12, difference / length.clamp_min(1e-12), 0.0)
        return e @ e.transpose(1, 2)


def _check_features(teacher: tuple[int, ...], student: tuple[int, ...]) -> None:
    if len(teacher) != 2 or len(student) != 2 or teacher[0] != student[0]:
        hint = "pooled features (B, D) of one batch would, whatever their widths (global_pool)"
    elif student[0] < 2:
        hint = "there is no relation within a batch of 1; a batch_size of 2 or more would fit"
    else:
        return
    raise ShapeMismatch(f"RKD: teacher tap {teacher} and student tap {student} do not fit; {hint}")


@METHODS.register_module()
class RKD(Method):
    """Relations between the samples of a batch: taps the pooled feature of both sides, of any widths. No modules.

    L = distance · L_D + angle · L_A, beside cross entropy at weight 1. The factors are the CIFAR-100 benchmarks' and
    stay inside the link, so `weight` scales both. With several taps the losses add up.

    Args:
        distance, angle: factors on the terms of these names; a term with factor 0 is not computed.
        weight: factor on both.
        kwargs: see `Method`.
    Raises: ConfigError unless both factors are ≥ 0 and one is positive.
    """

    default_taps = (("global_pool", "global_pool"),)

    def __init__(self, *, distance: float = 25.0, angle: float = 50.0, weight: float = 1.0, **kwargs: Any) -> None:
        super().__init__(weight=weight, **kwargs)
        if not (distance >= 0 and angle >= 0 and distance + angle > 0):
            raise ConfigError(f"RKD needs distance and angle >= 0, one of them positive; got {distance} and {angle}")
        self.distance, self.angle = float(distance), float(angle)

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        for teacher, student in zip(teacher_shapes, student_shapes, strict=True):
            _check_features(teacher, student)

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        pairs = list(zip(batch.student, batch.teacher, strict=True))
        parts = (("distance", self.distance, rkd_distance_loss), ("angle", self.angle, rkd_angle_loss))
        return {
            name: factor * torch.stack([loss(s, t) for s, t in pairs]).sum() for name, factor, loss in parts if factor
        }
