"""CLIPFD: feature distillation of CLIP-KD (arXiv 2307.12732)."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from limbeck.engine.method import LinkInputs
from limbeck.engine.registry import METHODS
from limbeck.multimodal.vlm.methods._clip_parts import ClipLink, check_rows, unit


def fd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over all B · d entries of (n(x) − n(V))², n the normalisation of rows: (2 / d) · mean (1 − cosine).

    Args:
        student: projected embeddings φ v (B, d).
        teacher: embeddings (B, d). Its gradient is stopped.
    Returns: scalar in [0, 4 / d].
    Raises: ShapeMismatch.

    >>> import torch
    >>> fd_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])).item()
    1.0
    """
    check_rows("CLIPFD", student, teacher)
    return F.mse_loss(unit(student), unit(teacher.detach()))


@METHODS.register_module()
class CLIPFD(ClipLink):
    """Mimics the teacher's normalised image embedding: L = `fd_loss`(φ v, V) over all rows, labelled or not.

    v is the student's pooled feature (B, d), V the teacher's embedding (B, d_T); φ is linear, trained with the student
    and dropped with the link. The paper adds the same on text embeddings, which a classifier has not. Its weight is
    2000 of a mean over entries, that is 2000 / d_T of a squared distance. Any teacher with `features` will do.

    Args:
        weight: factor on the term "fd".
        kwargs: see `ClipLink`.
    """

    reads_text = False
    assumption = "Image embeddings alone: a learned projection stands for the student's image embedding."

    def __init__(self, *, weight: float = 2000.0, **kwargs: Any) -> None:
        super().__init__(weight=weight, **kwargs)

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        return {"fd": fd_loss(self.embed(batch.student[0]), batch.teacher[0])}
