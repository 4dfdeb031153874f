"""ReviewKD: distilling knowledge via knowledge review (arXiv 2104.09044)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.losses import hcl_loss
from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch


class ABF(nn.Module):
    """Attention-based fusion of one level with what the deeper levels hand on.

    X = BN(conv1×1(F_S)), C_S to M channels; Y is the residual of the deeper level at X's size (nearest). Two gates for
    each position, (a₁, a₂) = sigmoid(conv1×1([X; Y])), fuse them: U = a₁ X + a₂ Y. U goes to the teacher's size
    (nearest) and is handed on; the output is BN(conv3×3(U)), M to C_T channels. At the deepest level U = X.

    Args:
        student, width, teacher: C_S, M, C_T.
        fuse: False at the deepest level.
    """

    def __init__(self, student: int, width: int, teacher: int, *, fuse: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(student, width, 1, bias=False), nn.BatchNorm2d(width))
        self.gate = nn.Conv2d(2 * width, 2, 1) if fuse else None
        self.out = nn.Sequential(nn.Conv2d(width, teacher, 3, padding=1, bias=False), nn.BatchNorm2d(teacher))
        for conv in (self.reduce[0], self.out[0]):
            nn.init.kaiming_uniform_(cast(nn.Conv2d, conv).weight, a=1)

    def forward(self, x: Tensor, deeper: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(B, C_S, H, W), the deeper level's residual (B, M, h, w) and the teacher's size: output and own residual."""
        u = self.reduce(x)
        if self.gate is not None and deeper is not None:
            y = _nearest(deeper, (u.shape[2], u.shape[3]))
            gates = self.gate(torch.cat([u, y], dim=1)).sigmoid()
            u = gates[:, :1] * u + gates[:, 1:] * y
        u = _nearest(u, size)
        return self.out(u), u


def _nearest(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x if tuple(x.shape[2:]) == size else F.interpolate(x, size, mode="nearest")


@METHODS.register_module()
class ReviewKD(Method):
    """Teaches shallow levels of the teacher to deeper levels of the student: taps maps from shallow to deep.

    A tap may also be a pooled vector (B, D), which is seen as a map of 1×1 pixels; a pair is of one kind. An `ABF` for
    each pair brings the student to the teacher's shape, deepest first, and the terms of `hcl_loss` add up. The modules
    are trained with the student and dropped with the link.

    The authors tap the teacher before the last ReLU of a stage and CIFAR students after it; so do the defaults, in the
    names of `limbeck.vision.models` (`preactN`, `layerN`), with the pooled features as the deepest level. Name a fourth
    stage where there is one. Elsewhere (timm's blocks have no tap before the last ReLU) any maps can be named.

    Official weights on CIFAR-100: 0.6 for ResNet-56 → 20, 1 for 110 → 32, 8 for ResNet-32x4 → ShuffleNetV2, 5 for the
    other pairs, with `schedule=dict(type='epochs', warmup_epochs=20, total_epochs=240)`; 1 on ImageNet with 1 epoch of
    warm-up, 8 for ResNet-50 → MobileNetV1. Cross entropy keeps weight 1.

    Args:
        width: M of every ABF; None takes min(512, C_S of the last pair). Segmentation has 64.
        weight: factor on the term "review".
        kwargs: see `Method`.
    Raises: ConfigError for a width below 1.
    """

    default_taps = (
        ("preact1", "layer1"),
        ("preact2", "layer2"),
        ("preact3", "layer3"),
        ("global_pool", "global_pool"),
    )
    levels: nn.ModuleList

    def __init__(self, *, width: int | None = None, weight: float = 1.0, **kwargs: Any) -> None:
        super().__init__(weight=weight, **kwargs)
        if width is not None and width < 1:
            raise ConfigError(f"ReviewKD needs a width of 1 channel or more; got {width}")
        self.width = width

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        pairs = list(zip(teacher_shapes, student_shapes, strict=True))
        for teacher, student in pairs:
            _check_pair(teacher, student)
        sides = [(*shape, 1, 1)[2:4] for shape in student_shapes]
        if any(deep[0] > shallow[0] or deep[1] > shallow[1] for shallow, deep in pairwise(sides)):
            raise ConfigError(
                f"ReviewKD: student taps {[s for _, s in self.taps]} of sizes {sides} grow from one to the next; "
                "list the taps from the shallowest to the deepest"
            )
        width = min(512, student_shapes[-1][1]) if self.width is None else self.width
        self.levels = nn.ModuleList(
            [ABF(student[1], width, teacher[1], fuse=i < len(pairs) - 1) for i, (teacher, student) in enumerate(pairs)]
        )

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        students, teachers = ([_as_map(x) for x in side] for side in (batch.student, batch.teacher))
        outputs = self.review(students, [(t.shape[2], t.shape[3]) for t in teachers])
        return {"review": torch.stack([hcl_loss(s, t) for s, t in zip(outputs, teachers, strict=True)]).sum()}

    def review(self, maps: list[Tensor], sizes: list[tuple[int, int]]) -> list[Tensor]:
        """The fused student maps (B, C_T, H_T, W_T) of all levels, given the student's and the teacher's sizes.

        Raises: ShapeMismatch for one sample whose map is one pixel, where batch norm has nothing to average.
        """
        if self.training and any(x.shape[0] * x.shape[2] * x.shape[3] == 1 for x in maps):
            raise ShapeMismatch(
                "ReviewKD: batch norm cannot train on one sample of 1×1 pixels; "
                "a batch_size of 2 or more, or no pooled tap, would fit"
            )
        outputs: list[Tensor] = []
        residual: Tensor | None = None
        for level, x, size in reversed(list(zip(self.levels, maps, sizes, strict=True))):
            output, residual = level(x, residual, size)
            outputs.append(output)
        return outputs[::-1]


def _as_map(x: Tensor) -> Tensor:
    return (x[:, :, None, None] if x.dim() == 2 else x).float()


def _check_pair(teacher: tuple[int, ...], student: tuple[int, ...]) -> None:
    if len(teacher) not in (2, 4) or len(teacher) != len(student) or teacher[0] != student[0]:
        raise ShapeMismatch(
            f"ReviewKD: teacher tap {teacher} and student tap {student} do not fit; "
            "two maps (B, C, H, W) or two pooled vectors (B, D) of one batch would"
        )
