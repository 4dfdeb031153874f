"""CLIPICL: interactive contrastive learning of CLIP-KD (arXiv 2307.12732)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.method import LinkInputs
from limbeck.engine.registry import METHODS
from limbeck.errors import ShapeMismatch
from limbeck.multimodal.vlm.methods._clip_parts import LOG_SCALE, ClipLink, CrossScale, check_choice, cross_factor, unit


def icl_loss(student: Tensor, keys: Tensor, labels: Tensor, scale: Tensor | float) -> Tensor:
    """Mean CE( scale · n(x) n(k)ᵀ, y ): the student's embeddings as queries, the teacher's as keys.

    Args:
        student: projected embeddings (B, d).
        keys: the teacher's (K, d). Their gradient is stopped.
        labels: which key is each query's, (B,).
    Returns: scalar ≥ 0; 0, with a graph, of no rows.
    Raises: ShapeMismatch.

    >>> round(icl_loss(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), 100.0).item(), 6)
    0.0
    """
    if student.ndim != 2 or keys.ndim != 2 or student.shape[1] != keys.shape[1]:
        raise ShapeMismatch(
            f"CLIPICL: queries {tuple(student.shape)} and keys {tuple(keys.shape)} do not fit; "
            "(B, d) and (K, d) would: project the student's to the teacher's width"
        )
    logits = scale * (unit(student) @ unit(keys.detach()).T)
    return F.cross_entropy(logits, labels, reduction="sum") / max(len(labels), 1)


@METHODS.register_module()
class CLIPICL(ClipLink):
    """Contrasts the student's images with the teacher's texts: mean CE( g n(φ v) W, y ) over the labelled rows.

    v is the student's pooled feature (B_l, d), W the teacher's class embeddings (d_T, K), constant; φ and the factor g
    are trained with the student. The paper's texts are the captions of a batch, and it adds the student's texts as
    queries for the teacher's images; its weight is 1.

    Args:
        cross_scale: 'exp': the factor is exp(g), g from ln(1/0.07), so 14.3 at the start. 'raw': it is g itself, 2.66,
            as the official code has it. No bounds.
        weight: factor on the term "icl".
        kwargs: see `ClipLink`. A batch without labels gives 0; in the first step that stops the run unless
            `may_be_zero`.
    Raises: UnknownName for another cross_scale.
    """

    default_taps = (("features", "labelled_features"),)

    def __init__(self, *, cross_scale: CrossScale = "exp", weight: float = 1.0, **kwargs: Any) -> None:
        super().__init__(weight=weight, **kwargs)
        self.cross_scale: CrossScale = check_choice("CLIPICL", "cross_scale", cross_scale, ("exp", "raw"))
        self.log_cross = nn.Parameter(torch.tensor(LOG_SCALE))

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        student, _, labels = self.rows(batch)
        with torch.autocast(student.device.type, enabled=False):
            scale = cross_factor(self.log_cross, self.cross_scale)
            return {"icl": icl_loss(self.embed(student), self.classes(), labels, scale)}
