"""ScaleKD's cross-attention projector: a student map to a teacher's token grid and width (arXiv 2411.06786)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.bridges_tokens import TapForm

SOFTMAX_SCALE = 5.0  # sharpens the attention beyond 1 / √d


class CrossAttentionProjector(nn.Module):
    """CAP: learned queries, or given ones, read a student map by multi-head cross-attention.

    X = ReLU(BN(conv3×3(F))) + P gives keys and values, the queries pass a linear layer and ReLU, the logits are
    5 · q·k / √(d / heads), and y = z + FFN(z) with z = LayerNorm(attention). No shortcut around the attention.

    Args:
        student: form of the student's tap.
        tokens, width: of the output (B, tokens, width).
        heads: of the attention; divides `width`.
        own_queries: learn an embedding (tokens, width) as query; else `forward` is given one.
    """

    def __init__(self, student: TapForm, tokens: int, width: int, heads: int, *, own_queries: bool) -> None:
        super().__init__()
        channels = student.width
        self.student, self.heads = student, heads
        self.conv = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
        self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, channels, *student.size), std=0.02))
        self.queries = nn.Parameter(torch.randn(tokens, width)) if own_queries else None
        # The official 1×1 convolution on a map of queries is this linear layer on their tokens.
        self.query = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.key, self.value = nn.Linear(channels, width), nn.Linear(channels, width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """A student tap, and queries (B, tokens, width) where it has none of its own, to (B, tokens, width)."""
        source = (self.conv(self.student.to_map(x)) + self.position).flatten(2).transpose(1, 2)
        if queries is None:
            assert self.queries is not None
            queries = self.queries.expand(len(x), -1, -1)
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(queries), self.key(source), self.value(source))
        )
        scale = SOFTMAX_SCALE * q.shape[-1] ** -0.5
        attended = F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)
        z = self.norm(self.out(attended))
        return z + self.ffn(z)
