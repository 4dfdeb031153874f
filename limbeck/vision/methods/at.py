"""AT: paying more attention to attention (arXiv 1612.03928)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.engine.bridges import mismatch, pool_to_smaller
from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError


def at_loss(student: Tensor, teacher: Tensor, *, power: float = 2.0) -> Tensor:
    """Mean squared difference of two normalised attention maps.

    L = mean over B, H, W of (Q_S − Q_T)², Q as in `attention_map`. The larger map is average-pooled to the smaller size
    before the power is taken. At most 2 / (H · W), since both Q are non-negative unit vectors.

    Args:
        student, teacher: maps (B, C, H, W) of one batch; C, H and W may differ. The teacher's gradient is stopped.
        power: p ≥ 1.
    Returns: scalar ≥ 0, computed in float32.
    Raises: ShapeMismatch when one is no map or the batches differ.

    >>> x = torch.rand(2, 3, 4, 4)
    >>> at_loss(x, -5.0 * x).item() < 1e-9
    True
    """
    _check_maps(tuple(teacher.shape), tuple(student.shape))
    maps = pool_to_smaller(student.float(), teacher.detach().float())
    q_s, q_t = (attention_map(x, power=power) for x in maps)
    return F.mse_loss(q_s, q_t)


def attention_map(x: Tensor, *, power: float = 2.0) -> Tensor:
    """Q = normalise₂(flatten(mean_c |F_c|^p)), (B, C, H, W) to (B, H·W).

    A map of zeros gives zeros: the norm has a floor of 1e-12.
    """
    return F.normalize(x.abs().pow(power).mean(dim=1).flatten(1), dim=1, eps=1e-12)


def _check_maps(teacher: tuple[int, ...], student: tuple[int, ...]) -> None:
    if len(teacher) != 4 or len(student) != 4 or teacher[0] != student[0]:
        raise mismatch("AT: two maps (B, C, H, W) of one batch are needed", teacher, student)


@METHODS.register_module()
class AT(Method):
    """Attention transfer: taps maps of any width and size, stages 1 to 3 by default, and adds their losses. No modules.

    The code bases whose tables are quoted use weight 1000 beside cross entropy at weight 1 on CIFAR-100; DKD's keeps it
    on ImageNet.

    Args:
        power: p of the attention map, ≥ 1.
        weight: factor on the term "attention".
        kwargs: see `Method`.
    Raises: ConfigError for a power below 1.
    """

    default_taps = (("layer1", "layer1"), ("layer2", "layer2"), ("layer3", "layer3"))

    def __init__(self, *, power: float = 2.0, weight: float = 1000.0, **kwargs: Any) -> None:
        super().__init__(weight=weight, **kwargs)
        if not power >= 1:
            raise ConfigError(f"AT needs power >= 1; got {power}")
        self.power = float(power)

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        for teacher, student in zip(teacher_shapes, student_shapes, strict=True):
            _check_maps(teacher, student)

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        pairs = zip(batch.student, batch.teacher, strict=True)
        return {"attention": torch.stack([at_loss(s, t, power=self.power) for s, t in pairs]).sum()}
