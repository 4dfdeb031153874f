"""CLIPCRD: contrastive relational distillation of CLIP-KD (arXiv 2307.12732); TinyCLIP's affinity mimicking."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.engine.bridges import require_same_shape
from limbeck.engine.method import LinkInputs
from limbeck.engine.registry import METHODS
from limbeck.multimodal.vlm.methods._clip_parts import ScaledLink, full, unit


def crd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """KL( σ(t) ‖ σ(z) ): summed over a row, averaged over the rows.

    Args:
        student, teacher: scaled cosines (B, K). The teacher's gradient is stopped.
    Returns: scalar ≥ 0.
    Raises: ShapeMismatch.

    >>> crd_loss(torch.tensor([[0.0, 1.0]]), torch.tensor([[5.0, 6.0]])).item()
    0.0
    """
    require_same_shape(student, teacher, "CLIPCRD")
    log_q, log_p = full(student).log_softmax(1), full(teacher.detach()).log_softmax(1)
    return F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")


@METHODS.register_module()
class CLIPCRD(ScaledLink):
    """Mimics how near the teacher finds an image to each class: KL( σ(s_T V W) ‖ σ(s n(φ v) W) ) over all rows.

    V is the teacher's normalised image embedding (B, d_T), W its class embeddings (d_T, K), v the student's pooled
    feature (B, d); W is constant. The paper compares a batch's images with its captions, and captions with images, has
    no φ in this term, and weight 1 of the mean of both directions. Its cross term, whose texts are the teacher's too,
    is the same for a classifier.

    TinyCLIP's affinity mimicking (ICCV 2023) is a cross entropy instead of a divergence: larger by the entropy of the
    teacher's rows, a constant, and of the same gradients. Its scripts fix both scales: `teacher_scale=50.0,
    student_scale='teacher'`.

    Args:
        weight: factor on the term "crd".
        kwargs: see `ScaledLink`.
    """

    def __init__(self, *, weight: float = 1.0, **kwargs: Any) -> None:
        super().__init__(weight=weight, **kwargs)

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        (student,), (teacher,) = batch.student, batch.teacher
        with torch.autocast(student.device.type, enabled=False):
            (s, s_t), keys = self.scales(), self.classes()
            return {"crd": crd_loss(s * self.embed(student) @ keys.T, s_t * unit(teacher) @ keys.T)}
