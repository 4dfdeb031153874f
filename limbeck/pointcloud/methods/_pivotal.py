"""Losses of class scores and boxes at pivotal positions of dense 3D heads (SparseKD, arXiv 2205.15156)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.engine.bridges import mismatch, require_same_shape
from limbeck.engine.losses import resize_bilinear

CLAMP = 1e-4  # on the probabilities of centre heads, as their own loss has it
SMALL = 1e-6
BETA = 1.0 / 9.0


def probabilities(logits: Tensor, clamp: float = 0.0) -> Tensor:
    """σ of logits in float32, kept `clamp` away from 0 and 1."""
    return logits.float().sigmoid().clamp(clamp, 1 - clamp)


@torch.no_grad()
def position_weights(
    scores: Tensor,
    *,
    mask: Tensor | None = None,
    threshold: float = 0.0,
    top: int | None = None,
    soft: bool = True,
) -> Tensor:
    """w(x) = [m > θ] · m · Y(x) · [x among the K largest m], m(x) the teacher's largest score at a cell.

    Args:
        scores: the teacher's probabilities (B, C, H, W).
        mask: Y, (B, H, W) bool or in [0, 1]; None is 1 everywhere.
        threshold: θ.
        top: K of each cloud, ties in the order of cells; None takes all.
        soft: whether the factor m is there.
    Returns: (B, H, W) float32 in [0, 1], without a gradient.
    """
    best = scores.float().amax(1)
    weights = (best > threshold).float()
    if top is not None:
        order = best.flatten(1).argsort(dim=1, descending=True, stable=True)[:, :top]
        weights *= torch.zeros_like(best).flatten(1).scatter_(1, order, 1.0).view_as(best)
    if soft:
        weights *= best
    return weights if mask is None else weights * mask


def score_loss(student: Tensor, teacher: Tensor, weights: Tensor, *, clamp: float = 0.0) -> Tensor:
    """Σ_{b,c,x} w (σ_S − σ_T)² / (Σ_{b,x} w + 1e-6): a sum over channels, a weighted mean over positions of the batch.

    Args:
        student, teacher: logits (B, C, H, W); the student's probabilities are resized to the teacher's map, bilinearly.
            The teacher's gradient is stopped.
        weights: w (B, H, W) on the teacher's map, ≥ 0. Gradient stopped.
        clamp: see `probabilities`.
    Returns: scalar ≥ 0, computed in float32; 0 where all weights are.
    Raises: ShapeMismatch when the logits differ in batch or channels.
    """
    if student.dim() != 4 or teacher.dim() != 4 or student.shape[:2] != teacher.shape[:2]:
        raise mismatch("SparseKD", tuple(teacher.shape), tuple(student.shape))
    with torch.autocast(student.device.type, enabled=False):
        p, q = probabilities(student, clamp), probabilities(teacher.detach(), clamp)
        error = (resize_bilinear(p, (q.shape[2], q.shape[3])) - q).square().sum(1)
        weights = weights.detach().float()
        return (weights * error).sum() / (weights.sum() + SMALL)


def box_loss(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """Σ_i w_i Σ_d smooth-L1 of the box codes' differences (β = 1 / 9), the yaw's by its sine.

    sin a cos b against cos a sin b, as detectors have it, is sin(a − b) against 0.

    Args:
        student, teacher: codes (P, 7) of boxes, the yaw last. The teacher's gradient is stopped.
        weights: w (P,). Gradient stopped.
    Returns: scalar ≥ 0, computed in float32; 0, with a graph, for no boxes.
    """
    require_same_shape(student, teacher, "SparseKD's box term")
    difference = student.float() - teacher.detach().float()
    difference = torch.cat([difference[:, :6], difference[:, 6:].sin()], dim=1)
    loss = F.smooth_l1_loss(difference, torch.zeros_like(difference), reduction="none", beta=BETA)
    return (weights.detach().float() * loss.sum(1)).sum()


def centre_loss(student: Tensor, teacher: Tensor, cells: Tensor, valid: Tensor) -> Tensor:
    """Σ_d Σ_{b,k} M |r_S − r_T| at the cells of objects / max(1, Σ M): L1 of the codes of a centre head.

    Args:
        student, teacher: regression maps (B, D, H, W), same shape. The teacher's gradient is stopped.
        cells: index y · W + x of each object's cell, (B, O).
        valid: M (B, O), which of them are objects.
    Returns: scalar ≥ 0, computed in float32; 0, with a graph, without objects.
    """
    require_same_shape(student, teacher, "SparseKD's box term")
    where = cells.long()[:, None].expand(-1, student.shape[1], -1)
    s, t = (side.float().flatten(2).gather(2, where) for side in (student, teacher.detach()))
    valid = valid.float()
    return ((s - t).abs() * valid[:, None]).sum() / valid.sum().clamp(min=1)


def direction_loss(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """Σ_i w_i KL(softmax z_T ‖ softmax z_S) of direction logits (P, 2); the teacher's gradient is stopped."""
    require_same_shape(student, teacher, "SparseKD's direction term")
    log_q, log_p = student.float().log_softmax(1), teacher.detach().float().log_softmax(1)
    return (weights.detach().float() * (log_p.exp() * (log_p - log_q)).sum(1)).sum()
