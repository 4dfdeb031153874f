"""VID: variational information distillation for knowledge transfer (arXiv 1904.05835)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.bridges import pool_to_smaller
from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch

FLOOR = 1e-5  # of the variance


def vid_loss(mean: Tensor, teacher: Tensor, variance: Tensor) -> Tensor:
    """Negative log likelihood of the teacher's map under a Gaussian around the student's prediction, less a constant.

    L = mean over B, C, H, W of ½ [(μ − F_T)² / v_c + log v_c]. Negative where the variance is below 1; for a fixed
    residual r it is least at v = r².

    Args:
        mean: prediction μ (B, C, H, W).
        teacher: map F_T of the same shape. Its gradient is stopped.
        variance: v (C,), > 0.
    Returns: scalar, computed in float32.
    Raises: ShapeMismatch when the three do not fit.

    >>> x = torch.rand(2, 3, 4, 4)
    >>> round(vid_loss(x, x, torch.full((3,), 5.0)).item(), 4)  # ½ log 5
    0.8047
    """
    if mean.shape != teacher.shape or mean.dim() != 4 or variance.shape != mean.shape[1:2]:
        raise ShapeMismatch(
            f"VID: prediction {tuple(mean.shape)}, teacher map {tuple(teacher.shape)} and variance "
            f"{tuple(variance.shape)} do not fit; two maps (B, C, H, W) of one shape and a variance (C,) would"
        )
    v = variance.float().view(1, -1, 1, 1)
    squared = (mean.float() - teacher.detach().float()).square()
    return 0.5 * (squared / v + v.log()).mean()


class MeanNetwork(nn.Sequential):
    """Three 1×1 convolutions without bias, ReLU between them: (B, C_S, H, W) to (B, C_T, H, W)."""

    def __init__(self, student: int, teacher: int) -> None:
        layers: list[nn.Module] = []
        for width in (student, teacher, teacher):
            layers += [nn.Conv2d(width, teacher, 1, bias=False), nn.ReLU()]
        super().__init__(*layers[:-1])


@METHODS.register_module()
class VID(Method):
    """Maximises a bound on the information that the student's maps hold about the teacher's: taps maps, stages 1 to 3.

    Each pair has a network for the mean and a variance for each channel of the teacher, v_c = softplus(α_c) + 1e-5; the
    losses add up. The larger map of a pair is average-pooled to the smaller size, the student's before the network.
    Networks and variances are trained with the student, by its optimiser and weight decay, and dropped with the link.
    DKD's code base leaves α out of the optimiser, so that v stays as it began; it is trained here, as in CRD's.

    The term may be negative. The code bases use weight 1 beside cross entropy at weight 1.

    Args:
        initial_variance: v before the first step, > 1e-5.
        weight: factor on the term "information".
        kwargs: see `Method`.
    Raises: ConfigError for an initial variance that is not above 1e-5.
    """

    default_taps = (("layer1", "layer1"), ("layer2", "layer2"), ("layer3", "layer3"))
    networks: nn.ModuleList
    alphas: nn.ParameterList

    def __init__(self, *, initial_variance: float = 5.0, weight: float = 1.0, **kwargs: Any) -> None:
        super().__init__(weight=weight, **kwargs)
        if not FLOOR < initial_variance < math.inf:
            raise ConfigError(f"VID needs a finite initial_variance > {FLOOR}; got {initial_variance}")
        self.initial_variance = float(initial_variance)

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        pairs = list(zip(teacher_shapes, student_shapes, strict=True))
        for teacher, student in pairs:
            if len(teacher) != 4 or len(student) != 4 or teacher[0] != student[0]:
                raise ShapeMismatch(
                    f"VID: teacher tap {teacher} and student tap {student} do not fit; "
                    "maps (B, C, H, W) of one batch would, whatever their widths and sizes"
                )
        start = self.initial_variance - FLOOR
        alpha = start + math.log(-math.expm1(-start))  # log(exp(start) − 1), which overflows
        self.networks = nn.ModuleList([MeanNetwork(student[1], teacher[1]) for teacher, student in pairs])
        self.alphas = nn.ParameterList([nn.Parameter(torch.full((teacher[1],), alpha)) for teacher, _ in pairs])

    def variances(self) -> list[Tensor]:
        """v (C_T,) of every pair."""
        return [F.softplus(alpha) + FLOOR for alpha in self.alphas]

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        losses = []
        for network, v, s, t in zip(self.networks, self.variances(), batch.student, batch.teacher, strict=True):
            s, t = pool_to_smaller(s.float(), t.float())
            losses.append(vid_loss(network(s), t, v))
        return {"information": torch.stack(losses).sum()}
