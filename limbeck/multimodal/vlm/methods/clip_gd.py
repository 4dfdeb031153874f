"""CLIPGD: gradient distillation of CLIP-KD (arXiv 2307.12732)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from limbeck.engine.bridges import require_same_shape
from limbeck.engine.method import LinkInputs
from limbeck.engine.registry import METHODS
from limbeck.multimodal.vlm.methods._clip_parts import GDScale, ScaledLink, check_choice, full, unit


def contrastive_gradients(
    query: Tensor, keys: Tensor, labels: Tensor, scale: Tensor | float, gd_scale: GDScale = "correct"
) -> tuple[Tensor, Tensor]:
    """Gradients of mean CE( p kᵀ / τ, y ) with respect to the queries (B, d) and the keys (K, d), in closed form.

    With P = σ(p kᵀ / τ) and Y the labels as one-hot rows: ∂p = (P − Y) k / (τ B), ∂k = (P − Y)ᵀ p / (τ B).

    Args:
        query: p (B, d), rows of length 1. keys: k (K, d), likewise. labels: (B,).
        scale: s. gd_scale: 'correct': τ = 1 / s. 'official': τ = s, which the official code passes for it.
    """
    p, k = full(query), full(keys)
    factor = scale if gd_scale == "correct" else 1 / scale
    off = (factor * (p @ k.T)).softmax(1) - one_hot(labels, len(k)).to(p.dtype)
    factor = factor / max(len(p), 1)
    return factor * (off @ k), factor * (off.T @ p)


def gd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over all entries of the squared difference of two gradients (B, d).

    Returns: scalar ≥ 0; 0, with a graph, of no rows. The teacher's gradient is stopped.
    Raises: ShapeMismatch.
    """
    require_same_shape(student, teacher, "CLIPGD")
    return (student - teacher.detach()).square().sum() / max(student.numel(), 1)


@METHODS.register_module()
class CLIPGD(ScaledLink):
    """Mimics the gradient of the teacher's contrastive loss with respect to the image embedding, on labelled rows.

    L = mean (∂_S − ∂_T)², ∂ as in `contrastive_gradients`, of p_S = n(φ v) and p_T = V; the keys of both are the
    teacher's class embeddings, which are constant, so that of the paper's four gradients one is left.

    ASSUMPTION: weight 1. The script's 1e8 belongs to gd_scale='official', whose gradients are smaller by s² and losses
    by s⁴, 1e8 at s = 100. ASSUMPTION: the student's scale is the teacher's, as no loss of its own would train it.

    Args:
        gd_scale: 'correct' or 'official'.
        weight: factor on the term "gd".
        kwargs: see `ScaledLink`. A batch without labels gives 0; in the first step that stops the run unless
            `may_be_zero`.
    Raises: UnknownName for another gd_scale.
    """

    default_taps = (("features", "labelled_features"),)

    def __init__(self, *, gd_scale: GDScale = "correct", weight: float = 1.0, **kwargs: Any) -> None:
        super().__init__(weight=weight, **{"student_scale": "teacher", **kwargs})
        self.gd_scale: GDScale = check_choice("CLIPGD", "gd_scale", gd_scale, ("correct", "official"))

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        student, teacher, labels = self.rows(batch)
        with torch.autocast(student.device.type, enabled=False):
            (s, s_t), keys = self.scales(), self.classes()
            mine, _ = contrastive_gradients(self.embed(student), keys, labels, s, self.gd_scale)
            theirs, _ = contrastive_gradients(unit(teacher), keys, labels, s_t, self.gd_scale)
            return {"gd": gd_loss(mine, theirs)}
