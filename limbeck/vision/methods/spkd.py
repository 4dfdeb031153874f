"""SPKD: similarity-preserving knowledge distillation (arXiv 1907.09682)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import ShapeMismatch


def spkd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of the two sides' similarities between the samples of a batch.

    L = ‖G_S − G_T‖²_F / B², G as in `similarity`. In [0, 4 / B], [0, 2 / B] for non-negative features; 0 for B = 1.
    Relational: repeating every sample of the batch halves it.

    Args:
        student, teacher: features (B, …) of one batch; the other axes may differ. The teacher's gradient is stopped.
    Returns: scalar, computed in float32.
    Raises: ShapeMismatch when the batches differ.

    >>> x = torch.rand(4, 3, 2, 2)
    >>> spkd_loss(x, 2.0 * x.flip(1)).item() < 1e-9  # neither scale nor an orthogonal map of the features counts
    True
    """
    _check_batch(tuple(teacher.shape), tuple(student.shape))
    return F.mse_loss(similarity(student), similarity(teacher.detach()))


def similarity(x: Tensor) -> Tensor:
    """Rows of A Aᵀ divided by their L2 norm, A the features (B, …) flattened: (B, B).

    A sample of zeros has no similarity to any: its row stays 0 (floor of 1e-12 on the norm).
    """
    # autocast would do the product in half precision
    with torch.autocast(x.device.type, enabled=False):
        flat = x.float().flatten(1)
        return F.normalize(flat @ flat.T, dim=1, eps=1e-12)


def _check_batch(teacher: tuple[int, ...], student: tuple[int, ...]) -> None:
    if len(teacher) < 2 or len(student) < 2 or teacher[0] != student[0]:
        raise ShapeMismatch(
            f"SPKD: teacher tap {teacher} and student tap {student} do not fit; "
            "features (B, …) of one batch would, whatever their other axes"
        )


@METHODS.register_module()
class SPKD(Method):
    """Similarity preservation: taps features of any shape, the last map before pooling in the papers' nets. No modules.

    The official CIFAR-100 weight is 3000 beside cross entropy at weight 1. The default tap is the last stage of the
    three-stage CIFAR nets; name another (`layer4`, `conv_head`) elsewhere. With several taps the losses add up. A step
    of one sample has loss 0.

    Args:
        weight: factor on the term "similarity".
        kwargs: see `Method`.
    """

    default_taps = (("layer3", "layer3"),)

    def __init__(self, *, weight: float = 3000.0, **kwargs: Any) -> None:
        super().__init__(weight=weight, **kwargs)

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        for teacher, student in zip(teacher_shapes, student_shapes, strict=True):
            _check_batch(teacher, student)

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        pairs = zip(batch.student, batch.teacher, strict=True)
        return {"similarity": torch.stack([spkd_loss(s, t) for s, t in pairs]).sum()}
