"""OFA-KD's exit branches: from one student stage, a map or tokens, to class logits (arXiv 2310.19444)."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.bridges_tokens import TapForm, map_to_tokens
from limbeck.errors import ConfigError, ShapeMismatch

FINAL_GRID = 7  # patches a side to which tokens are merged


def conv_branch(channels: int, stages_after: int, width: int, classes: int) -> nn.Sequential:
    """A map (B, C, H, W) to logits (B, classes): SepConvs, or a 1×1 convolution at the last stage; pool; linear.

    Args:
        channels: C.
        stages_after: number of stages that follow, and of SepConvs, each of which halves height and width and doubles
            the channels; the last gives `width`.
    """
    widths = [channels * 2**i for i in range(stages_after)] + [width]
    body = [SepConv(a, b) for a, b in pairwise(widths)] or [nn.Conv2d(channels, width, 1)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


class SepConv(nn.Sequential):
    """Two depthwise-separable convolutions, the first with stride 2: (B, C, H, W) to (B, C', ⌈H/2⌉, ⌈W/2⌉)."""

    def __init__(self, in_chs: int, out_chs: int) -> None:
        layers: list[nn.Module] = []
        for stride, width in ((2, in_chs), (1, out_chs)):
            layers += [
                nn.Conv2d(in_chs, in_chs, 3, stride, 1, groups=in_chs, bias=False),
                nn.Conv2d(in_chs, width, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
        super().__init__(*layers)


def token_branch(form: TapForm, stages_after: int, width: int, classes: int, *, heads: int = 4) -> TokenBranch:
    """Tokens (B, N, D), or a (B, H, W, C) map, to logits (B, classes): patch merging, transformer blocks, linear.

    Args:
        stages_after: number of stages that follow; as many blocks, at least one.
        width: the student's final width.
    Raises: ConfigError when `heads` does not divide the width; ShapeMismatch when class tokens of another width would
        have to bypass the merging.
    """
    if width % heads:
        raise ConfigError(f"OFAKD: heads must divide the student's final width {width}; got {heads}")
    merges = max(int(math.log2(min(form.size) / FINAL_GRID)), 0) if min(form.size) >= FINAL_GRID else 0
    if merges and form.prefix and form.width != width:
        raise ShapeMismatch(
            f"OFAKD: class tokens of width {form.width} cannot join patches merged to the final width {width}; "
            "tap stages of equal width"
        )
    return TokenBranch(form, merges, max(stages_after, 1), width, classes, heads)


class TokenBranch(nn.Module):
    """The exit branch of tokens; class tokens bypass the merging and, where there are any, are what is classified."""

    def __init__(self, form: TapForm, merges: int, depth: int, width: int, classes: int, heads: int) -> None:
        super().__init__()
        from timm.models.vision_transformer import Block

        self.form = form
        # Of several mergings the last has no activation; a single one has it, as in the official code.
        acts = [nn.Identity() if 0 < i == merges - 1 else nn.GELU() for i in range(merges)]
        self.merge = nn.Sequential(
            *(PatchMerging(form.width if i == 0 else width, width, act) for i, act in enumerate(acts))
        )
        self.widen = nn.Identity() if merges or form.width == width else nn.Linear(form.width, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.head = nn.Linear(width * max(form.prefix, 1), classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D), or (B, H, W, C), to (B, classes)."""
        prefix = self.form.prefix
        patches = map_to_tokens(self.merge(self.form.to_map(x)))
        tokens = torch.cat([x[:, :prefix], patches], dim=1) if prefix else patches
        tokens = self.blocks(self.widen(tokens))
        return self.head(tokens[:, :prefix].flatten(1) if prefix else tokens.mean(dim=1))


class PatchMerging(nn.Module):
    """2×2 neighbours side by side, LayerNorm, linear, activation: (B, C, H, W) to (B, C', ⌈H/2⌉, ⌈W/2⌉)."""

    def __init__(self, in_chs: int, out_chs: int, act: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * in_chs)
        self.reduction = nn.Linear(4 * in_chs, out_chs, bias=False)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """An odd side is filled with zeros, as in Swin."""
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        x = F.pixel_unshuffle(x, 2).permute(0, 2, 3, 1)
        return self.act(self.reduction(self.norm(x))).permute(0, 3, 1, 2)


def init_branch(module: nn.Module) -> None:
    """Convolutions Kaiming-normal by fan-out, linear layers truncated normal 0.02, norms 1 and 0, biases 0."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
        nn.init.ones_(module.weight)
    if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.LayerNorm)) and module.bias is not None:
        nn.init.zeros_(module.bias)
