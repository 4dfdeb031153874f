"""Masks of ACAM-KD (arXiv 2503.06307): student–teacher cross-attention (STCA-FF), then learnable selectors (ASCM)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.detection.methods._receptive_tokens import token_masks

KINDS = ("channel", "spatial")
SOURCES = ("fusion", "teacher", "fixed")
QUERIES = ("teacher", "student", "teacher_only")


def cross_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Each position's weighted mean of values: F = V Aᵀ, A = softmax(Qᵀ K / √C_q) over the positions of K.

    One head, by the fused operator, which never holds the N×N matrix A.

    Args:
        query: Q (B, C_q, H, W), C_q ≤ C.
        key, value: K (B, C_q, h, w) and V (B, C, h, w).
    Returns: F (B, C, H, W), float32.

    >>> mean = cross_attention(torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 1, 2), torch.tensor([[[[1.0, 3.0]]]]))
    >>> mean.flatten().tolist()
    [2.0, 2.0]
    """
    width, channels = query.shape[1], value.shape[1]
    with torch.autocast(query.device.type, enabled=False):
        # (B, 1, N, ·), contiguous and of one head size: what the fused operators ask for; zeros change no product.
        q, k, v = (x.float().flatten(2).transpose(1, 2)[:, None].contiguous() for x in (query, key, value))
        q, k = (F.pad(x, (0, channels - width)) for x in (q, k))
        fused = F.scaled_dot_product_attention(q, k, v, scale=width**-0.5)
    return fused[:, 0].transpose(1, 2).reshape(len(query), channels, *query.shape[2:])


def fewer_positions(x: Tensor, most: int | None) -> Tensor:
    """A map (B, C, H, W) average-pooled by the smallest stride that leaves at most `most` positions; itself with None.

    Cells at the end may be smaller, so that no position is lost.
    """
    height, width = x.shape[2:]
    stride = 1
    while most is not None and -(-height // stride) * -(-width // stride) > most:
        stride += 1
    return x if stride == 1 else F.avg_pool2d(x, stride, ceil_mode=True)


def channel_masks(fused: Tensor, selectors: Tensor) -> Tensor:
    """M^c = σ(m^c v), v the mean of F over positions: (B, M, C) in (0, 1) and float32.

    A selector is one number, so row m rises with v where it is positive, falls where it is negative, and is ½ at 0.

    Args:
        fused: F (B, C, H, W).
        selectors: m^c (M, 1).
    """
    means = fused.float().mean((2, 3))
    return (selectors.float()[None] * means[:, None]).sigmoid()


def spatial_masks(fused: Tensor, selectors: Tensor) -> Tensor:
    """M^s = σ(m^s z), z the columns of F: (B, M, H, W) in (0, 1) and float32.

    Args:
        fused: F (B, C, H, W).
        selectors: m^s (M, C).
    """
    return token_masks(fused, selectors)


class CooperativeMasks(nn.Module):
    """The masks of one level: projections of the cross-attention, and the selectors, from N(0, 0.01²).

    Projections W_q, W_k (C → ⌊C / 2⌋, at least 1) and W_v (C → C) are 1×1 convolutions, Kaiming normal, biases 0.

    Args:
        width: C of teacher and aligned student.
        count: M.
        kinds: which masks there are, of 'channel' and 'spatial'.
        source: 'fusion' makes masks from F; 'teacher' from the teacher's map in its place; 'fixed' too, by selectors
            that are buffers: saved for resume, never trained by a run's optimiser.
        query: 'teacher' takes Q from the teacher, K and V from the student; 'student' swaps them; 'teacher_only' takes
            all three from the teacher.
        max_tokens: pool the map of K and V to at most as many positions; None is exact.
    """

    channel: Tensor | None
    spatial: Tensor | None

    def __init__(
        self,
        width: int,
        count: int,
        *,
        kinds: Sequence[str] = KINDS,
        source: str = "fusion",
        query: str = "teacher",
        max_tokens: int | None = None,
    ) -> None:
        super().__init__()
        self.source, self.query, self.max_tokens = source, query, max_tokens
        if source == "fusion" and kinds:
            narrow = max(width // 2, 1)
            self.w_q, self.w_k, self.w_v = (nn.Conv2d(width, out, 1) for out in (narrow, narrow, width))
            for conv in (self.w_q, self.w_k, self.w_v):
                nn.init.kaiming_normal_(conv.weight)
                nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        for kind, size in zip(KINDS, (1, width)):
            start = 0.01 * torch.randn(count, size) if kind in kinds else None
            if source == "fixed" or start is None:
                self.register_buffer(kind, start)
            else:
                self.register_parameter(kind, nn.Parameter(start))

    def fuse(self, teacher: Tensor, student: Tensor) -> Tensor:
        """F (B, C, H, W), what masks are made from, of the teacher's map and the aligned student's of its shape."""
        if self.source != "fusion":
            return teacher.float()
        asks, answers = {
            "teacher": (teacher, student),
            "student": (student, teacher),
            "teacher_only": (teacher, teacher),
        }[self.query]
        with torch.autocast(teacher.device.type, enabled=False):
            answers = fewer_positions(answers.float(), self.max_tokens)
            return cross_attention(self.w_q(asks.float()), self.w_k(answers), self.w_v(answers))

    def forward(self, teacher: Tensor, student: Tensor) -> dict[str, Tensor]:
        """Masks by kind: "channel" (B, M, C), "spatial" (B, M, H, W)."""
        if self.channel is None and self.spatial is None:
            return {}
        fused = self.fuse(teacher, student)
        masks = {}
        with torch.autocast(fused.device.type, enabled=False):
            if self.channel is not None:
                masks["channel"] = channel_masks(fused, self.channel)
            if self.spatial is not None:
                masks["spatial"] = spatial_masks(fused, self.spatial)
        return masks
