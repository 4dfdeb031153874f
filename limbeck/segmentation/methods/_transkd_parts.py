"""TransKD's parts (arXiv 2202.13393): what brings the student's stage maps and patch embeddings to the teacher's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.errors import ShapeMismatch


class SelectiveGate(nn.Module):
    """Shares (a, b) of two maps, one pair a channel, constant over space, a + b = 1 (after SKNet, arXiv 1903.06586).

    q = squeeze(GAP(X + Y)) and (a, b) = softmax over the pair [expand_a(q), expand_b(q)], with r = max(M // 16, 32)
    channels between. `squeeze` ends in batch norm, which has nothing to average over in a batch of one: then
    `squeeze_single`, with weights of its own and no norm, takes its place, as in the official code.

    Args:
        width: M of both maps.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        reduced = max(width // 16, 32)
        self.squeeze = nn.Sequential(nn.Conv2d(width, reduced, 1, bias=False), nn.BatchNorm2d(reduced), nn.ReLU())
        self.squeeze_single = nn.Sequential(nn.Conv2d(width, reduced, 1, bias=False), nn.ReLU())
        self.expand_a = nn.Conv2d(reduced, width, 1)
        self.expand_b = nn.Conv2d(reduced, width, 1)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Two maps (B, M, H, W) to their shares a and b, (B, M, 1, 1) each."""
        squeeze = self.squeeze_single if len(x) == 1 else self.squeeze
        q = squeeze((x + y).mean((2, 3), keepdim=True))
        a, b = torch.stack([self.expand_a(q), self.expand_b(q)]).softmax(0)
        return a, b


class FusionBlock(nn.Module):
    """One stage of cross selective fusion.

    X = BN(conv1×1(F_S)), C_S to M channels; Y is the deeper stage's U at X's size (nearest); U = a X + b Y with the
    shares of a `SelectiveGate`. U is handed on; the output is BN(conv3×3(U)), M to C_T. At the deepest stage U = X.

    Args:
        student, width, teacher: C_S, M, C_T.
        fuse: False at the deepest stage.
    """

    def __init__(self, student: int, width: int, teacher: int, *, fuse: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(student, width, 1, bias=False), nn.BatchNorm2d(width))
        self.out = nn.Sequential(nn.Conv2d(width, teacher, 3, padding=1, bias=False), nn.BatchNorm2d(teacher))
        self.gate = SelectiveGate(width) if fuse else None
        for conv in (self.reduce[0], self.out[0]):
            nn.init.kaiming_uniform_(cast(nn.Conv2d, conv).weight, a=1)

    def forward(self, x: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, C_S, H, W) and the deeper stage's U (B, M, h, w): output (B, C_T, H, W) and own U (B, M, H, W)."""
        u = self.reduce(x)
        if self.gate is not None and deeper is not None:
            y = F.interpolate(deeper, u.shape[2:], mode="nearest")
            a, b = self.gate(u, y)
            u = a * u + b * y
        return self.out(u), u


class CrossSelectiveFusion(nn.Module):
    """CSF: student maps of all stages, deepest first, to the teacher's widths; each stage reads the deeper ones.

    Args:
        students, teachers: widths C_S and C_T, one a stage, shallow to deep.
        width: M, that the stages have in common.
    """

    def __init__(self, students: Sequence[int], teachers: Sequence[int], width: int = 64) -> None:
        super().__init__()
        pairs = list(zip(students, teachers, strict=True))
        self.blocks = nn.ModuleList(
            [FusionBlock(s, width, t, fuse=i < len(pairs) - 1) for i, (s, t) in enumerate(pairs)]
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C_S, H, W) of all stages to maps (B, C_T, H, W) of the same sizes, both shallow to deep.

        Raises: ShapeMismatch for one sample whose map is one pixel, where batch norm has nothing to average.
        """
        if self.training and any(x.shape[0] * x.shape[2] * x.shape[3] == 1 for x in maps):
            raise ShapeMismatch(
                "TransKD: batch norm cannot train on one sample of 1×1 pixels; "
                "larger images or a batch_size of 2 would fit"
            )
        outputs: list[Tensor] = []
        carried: Tensor | None = None
        for block, x in reversed(list(zip(self.blocks, maps, strict=True))):
            output, carried = block(x, carried)
            outputs.append(output)
        return outputs[::-1]


class PatchEmbeddingAlignment(nn.Module):
    """PEA: a linear layer with bias for each stage, C_S to C_T.

    Args:
        students, teachers: widths C_S and C_T, one a stage.
    """

    def __init__(self, students: Sequence[int], teachers: Sequence[int]) -> None:
        super().__init__()
        self.linears = nn.ModuleList([nn.Linear(s, t) for s, t in zip(students, teachers, strict=True)])

    def forward(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """(B, N, C_S) of each stage to (B, N, C_T)."""
        return [linear(e) for linear, e in zip(self.linears, tokens, strict=True)]


class GLMixer(nn.Module):
    """Global and local context of one patch embedding, mixed by two learnt scalars (TransKD-GL).

    E' = w_g G + w_l L [+ E]. G is multi-head self-attention (qkv without bias, a projection with bias; no norm, no
    drop-out, no shortcut). L is a gated linear unit along the row-major tokens, conv_a(E) · sigmoid(conv_b(E)), of two
    convolutions with kernel 3 (one of twice the width here, which is the same).

    The official code never fills the two scalars, so that they start at whatever lies in memory; `init` is ours.

    Args:
        width: C of the tokens.
        heads: of the attention; divides C.
        init: what both scalars start at.
        residual: add E itself; off in the official scripts.
    Raises: ShapeMismatch when the heads do not divide the width.
    """

    def __init__(self, width: int, *, heads: int = 8, init: float = 0.5, residual: bool = False) -> None:
        super().__init__()
        if width % heads:
            raise ShapeMismatch(
                f"TransKD: {heads} mixer heads do not divide the student's last embedding of {width} channels; "
                "another mixer_heads would fit"
            )
        self.heads, self.residual = heads, residual
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.local = nn.Conv1d(width, 2 * width, 3, padding=1)
        self.w_global = nn.Parameter(torch.full((1,), init))
        self.w_local = nn.Parameter(torch.full((1,), init))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        local = F.glu(self.local(tokens.transpose(1, 2)), dim=1).transpose(1, 2)
        mixed = self.w_global * self.proj(attended) + self.w_local * local
        return mixed + tokens if self.residual else mixed


class OverlappingPatches(nn.Module):
    """A patch embedding as hierarchical transformers have it: LayerNorm(flatten(conv(x))).

    Args:
        channels, width: C_in and C_out.
        first: 7×7 with stride 4, for images; else 3×3 with stride 2. Both pad by half the kernel.
    """

    def __init__(self, channels: int, width: int, *, first: bool) -> None:
        super().__init__()
        kernel, stride = (7, 4) if first else (3, 2)
        self.conv = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.conv.weight, std=math.sqrt(2 / (kernel**2 * width)))
        nn.init.zeros_(cast(Tensor, self.conv.bias))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, N, C_out), N = ⌈H / stride⌉ · ⌈W / stride⌉."""
        return self.norm(self.conv(x).flatten(2).transpose(1, 2))


class EmbeddingAssistant(nn.Module):
    """Patch embeddings of the teacher's widths on what the student's own read, added to the aligned ones (TransKD-EA).

    Ê_i = u_i Z_i + v_i A_i. A_1 reads the image, A_i the student's map of stage i − 1, which gets gradient by it; see
    `OverlappingPatches`. u and v are learnt scalars that start at u_i = 0.1 i and v_i = 0.4 + 0.1 i.

    Args:
        channels: of the student's image and its maps of all stages but the last, one a stage: what A_i reads.
        teachers: widths C_T of the teacher's embeddings, of all stages.
        stages: those that have an assistant, from 0; None for all.
    """

    def __init__(self, channels: Sequence[int], teachers: Sequence[int], stages: Sequence[int] | None = None) -> None:
        super().__init__()
        self.stages = tuple(range(len(teachers)) if stages is None else stages)
        self.patches = nn.ModuleList([OverlappingPatches(channels[i], teachers[i], first=i == 0) for i in self.stages])
        self.u = nn.Parameter(torch.tensor([0.1 + 0.1 * i for i in self.stages]))
        self.v = nn.Parameter(torch.tensor([0.5 + 0.1 * i for i in self.stages]))

    def forward(self, aligned: Sequence[Tensor], image: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
        """Aligned embeddings Z_i (B, N, C_T) of `stages`, the student's image and all its maps: Ê_i (B, N, C_T).

        Raises: ShapeMismatch when a patch embedding has another number of tokens than the student's own.
        """
        sources = [image, *maps]
        found = []
        for k, (i, patches, z) in enumerate(zip(self.stages, self.patches, aligned, strict=True)):
            extra = patches(sources[i])
            if extra.shape[1] != z.shape[1]:
                raise ShapeMismatch(
                    f"TransKD: of {'the image' if i == 0 else f'stage {i}'}, {tuple(sources[i].shape)}, the assistant "
                    f"makes {extra.shape[1]} tokens and the student {z.shape[1]}; stages at strides 4, 8, 16, … would "
                    "fit, or assistant=False"
                )
            found.append(self.u[k] * z + self.v[k] * extra)
        return found
