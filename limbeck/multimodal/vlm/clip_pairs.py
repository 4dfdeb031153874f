"""CLIP-KD for students with an image and a text tower, on batches of pairs (arXiv 2307.12732): losses, not a link.

Rows are pairs: image and text i belong together. The student's embeddings v, u (B, d_S) come before normalisation; the
teacher's V, U (B, d_T) are constant. n is the normalisation of rows; v̂ = n(φ_v v) and û = n(φ_u u) have the teacher's
width, v̄ = n(v) and ū = n(u) the student's own. s and s_T are the factors on cosines, the exponentials of CLIP's
parameters; y is 0 … B − 1. Of several processes, gather the rows first. The paper's masked features (MFD) are FD with a
student whose tower saw a quarter of the patches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.multimodal.vlm.methods._clip_parts import (
    LOG_SCALE,
    CrossScale,
    GDScale,
    check_choice,
    check_rows,
    cross_factor,
    projection,
    unit,
)
from limbeck.multimodal.vlm.methods.clip_crd import crd_loss
from limbeck.multimodal.vlm.methods.clip_fd import fd_loss
from limbeck.multimodal.vlm.methods.clip_gd import contrastive_gradients, gd_loss
from limbeck.multimodal.vlm.methods.clip_icl import icl_loss

Scale = Tensor | float


def contrastive_loss(image: Tensor, text: Tensor, scale: Scale) -> Tensor:
    """CLIP's own: ½ [ CE( s v̄ ūᵀ, y ) + CE( s ū v̄ᵀ, y ) ] of embeddings (B, d)."""
    check_rows("the contrastive loss", image, text)
    logits = scale * (unit(image) @ unit(text).T)
    y = torch.arange(len(image), device=image.device)
    return (F.cross_entropy(logits, y) + F.cross_entropy(logits.T, y)) / 2


def fd_pairs(image: Tensor, text: Tensor, teacher_image: Tensor, teacher_text: Tensor) -> Tensor:
    """MSE(v̂, V) + MSE(û, U) of projected embeddings (B, d_T), means over all entries."""
    return fd_loss(image, teacher_image) + fd_loss(text, teacher_text)


def crd_pairs(
    image: Tensor, text: Tensor, teacher_image: Tensor, teacher_text: Tensor, scale: Scale, teacher_scale: Scale
) -> Tensor:
    """½ [ KL( σ(s_T V Uᵀ) ‖ σ(s v̄ ūᵀ) ) + the same on text rows ], of the student's own widths.

    TinyCLIP's affinity mimicking is this plus the entropies of the teacher's rows, a constant; its scales are 50.
    """
    z = scale * (unit(image) @ unit(text).T)
    t = teacher_scale * (unit(teacher_image) @ unit(teacher_text).T)
    return (crd_loss(z, t) + crd_loss(z.T, t.T)) / 2


def icl_pairs(image: Tensor, text: Tensor, teacher_image: Tensor, teacher_text: Tensor, cross: Scale) -> Tensor:
    """½ [ CE( g v̂ Uᵀ, y ) + CE( g û Vᵀ, y ) ] of projected embeddings."""
    check_rows("CLIPICL", image, teacher_text)
    check_rows("CLIPICL", text, teacher_image)
    y = torch.arange(len(image), device=image.device)
    return (icl_loss(image, teacher_text, y, cross) + icl_loss(text, teacher_image, y, cross)) / 2


def cross_pairs(
    image: Tensor, text: Tensor, teacher_image: Tensor, teacher_text: Tensor, cross: Scale, teacher_scale: Scale
) -> Tensor:
    """½ [ KL( σ(s_T V Uᵀ) ‖ σ(g v̂ Uᵀ) ) + KL( σ(s_T U Vᵀ) ‖ σ(g û Vᵀ) ) ] of projected embeddings."""
    v, u = unit(teacher_image.detach()), unit(teacher_text.detach())
    t = teacher_scale * (v @ u.T)
    return (crd_loss(cross * (unit(image) @ u.T), t) + crd_loss(cross * (unit(text) @ v.T), t.T)) / 2


def gd_pairs(
    image: Tensor,
    text: Tensor,
    teacher_image: Tensor,
    teacher_text: Tensor,
    scale: Scale,
    teacher_scale: Scale,
    gd_scale: GDScale = "correct",
) -> Tensor:
    """Sum of four `gd_loss`: gradients of images and texts, each as queries and as keys, of projected embeddings.

    See `contrastive_gradients`, also for `gd_scale`; the script's weight 1e8 belongs to 'official'.
    """
    total = torch.zeros((), device=image.device)
    y = torch.arange(len(image), device=image.device)
    for mine, theirs in (
        ((image, text), (teacher_image, teacher_text)),
        ((text, image), (teacher_text, teacher_image)),
    ):
        student = contrastive_gradients(unit(mine[0]), unit(mine[1]), y, scale, gd_scale)
        teacher = contrastive_gradients(unit(theirs[0]), unit(theirs[1]), y, teacher_scale, gd_scale)
        total = total + sum(gd_loss(a, b) for a, b in zip(student, teacher))
    return total


class CLIPPairLoss(nn.Module):
    """Every term of CLIP-KD on pairs, with what they learn beside the student: φ_v, φ_u, g, and AFD's A_v, A_u, h.

    total = task · contrastive + crd · CRD + icl · ICL + fd · FD + cross · cross + gd · GD + afd · AFD.
    φ is the identity where the widths agree. Train its parameters with the student's, and drop it afterwards.

    AFD = ½ [ CE( h a bᵀ, y ) + CE( h b aᵀ, y ) ] of the fused a = n( A_v [v̂ ; V] ) and b = n( A_u [û ; U] ).
    ASSUMPTION: A maps 2 d_T numbers to d_S, where the specification has d_S + d_T: v̂ is as wide as V.

    Args:
        student_dim, teacher_dim: d_S, d_T.
        task, crd, icl, fd, cross, gd, afd: factors; the defaults are the paper's final recipe. 0 leaves a term out.
        cross_scale: of g and h: 'exp' takes their exponentials, 'raw' themselves, as the official code does.
        gd_scale: see `contrastive_gradients`.
    Raises: UnknownName.
    """

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        *,
        task: float = 1.0,
        crd: float = 1.0,
        icl: float = 1.0,
        fd: float = 2000.0,
        cross: float = 0.0,
        gd: float = 0.0,
        afd: float = 0.0,
        cross_scale: CrossScale = "exp",
        gd_scale: GDScale = "correct",
    ) -> None:
        super().__init__()
        self.factors = dict(task=task, crd=crd, icl=icl, fd=fd, cross=cross, gd=gd, afd=afd)
        self.cross_scale: CrossScale = check_choice("CLIPPairLoss", "cross_scale", cross_scale, ("exp", "raw"))
        self.gd_scale: GDScale = check_choice("CLIPPairLoss", "gd_scale", gd_scale, ("correct", "official"))
        self.phi_image, self.phi_text = (projection(student_dim, teacher_dim) for _ in range(2))
        self.log_cross = nn.Parameter(torch.tensor(LOG_SCALE))
        if afd:
            self.fuse_image, self.fuse_text = (nn.Linear(2 * teacher_dim, student_dim) for _ in range(2))
            self.log_fused = nn.Parameter(torch.tensor(LOG_SCALE))

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        teacher_image: Tensor,
        teacher_text: Tensor,
        scale: Scale,
        teacher_scale: Scale,
    ) -> dict[str, Tensor]:
        """Terms times their factors, by name; their sum is the objective.

        Args:
            image, text: the student's (B, d_S), before normalisation.
            teacher_image, teacher_text: (B, d_T), normalised or not. Their gradient is stopped.
            scale, teacher_scale: s and s_T.
        Raises: ShapeMismatch.
        """
        teacher = teacher_image.detach(), teacher_text.detach()
        own, projected = (image, text), (self.phi_image(image), self.phi_text(text))
        cross = cross_factor(self.log_cross, self.cross_scale)
        terms = dict(
            task=lambda: contrastive_loss(*own, scale),
            crd=lambda: crd_pairs(*own, *teacher, scale, teacher_scale),
            icl=lambda: icl_pairs(*projected, *teacher, cross),
            fd=lambda: fd_pairs(*projected, *teacher),
            cross=lambda: cross_pairs(*projected, *teacher, cross, teacher_scale),
            gd=lambda: gd_pairs(*projected, *teacher, scale, teacher_scale, self.gd_scale),
            afd=lambda: self._afd(*projected, *teacher),
        )
        return {name: self.factors[name] * term() for name, term in terms.items() if self.factors[name]}

    def _afd(self, image: Tensor, text: Tensor, teacher_image: Tensor, teacher_text: Tensor) -> Tensor:
        a = self.fuse_image(torch.cat([unit(image), unit(teacher_image)], dim=1))
        b = self.fuse_text(torch.cat([unit(text), unit(teacher_text)], dim=1))
        return contrastive_loss(a, b, cross_factor(self.log_fused, self.cross_scale))
