"""Residual nets of the CIFAR tables: ResNet, the bottleneck ResNet-50 and Wide ResNet.

Their taps are named by `CIFARNet`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.inputs import Stat
from limbeck.engine.registry import MODELS
from limbeck.errors import ConfigError
from limbeck.vision._cifar_net import CIFARNet

Shortcut = Literal["pad", "conv"]


# --- ResNet ---


class OptionAShortcut(nn.Module):
    """Every `stride`-th pixel, and zero channels on both sides: the shortcut without parameters (option A)."""

    def __init__(self, in_chs: int, out_chs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (out_chs - in_chs) // 2
        self.after = out_chs - in_chs - self.before

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H / stride, W / stride)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


def shortcut(kind: Shortcut, in_chs: int, out_chs: int, stride: int) -> nn.Module:
    """What a block adds to its output: the input where it fits, else padded ('pad') or projected ('conv', option B)."""
    if stride == 1 and in_chs == out_chs:
        return nn.Identity()
    if kind == "pad":
        return OptionAShortcut(in_chs, out_chs, stride)
    return nn.Sequential(nn.Conv2d(in_chs, out_chs, 1, stride, bias=False), nn.BatchNorm2d(out_chs))


class CIFARBlock(nn.Module):
    """Basic block; `preact` is its output before the last ReLU, which the CIFAR literature taps."""

    def __init__(self, in_chs: int, out_chs: int, stride: int, kind: Shortcut = "pad") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chs, out_chs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_chs)
        self.act1 = nn.ReLU()  # not in place: an in-place ReLU would overwrite a tapped batch norm
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_chs)
        self.downsample = shortcut(kind, in_chs, out_chs, stride)
        self.preact = nn.Identity()
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H / stride, W / stride)."""
        y = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.preact(self.bn2(self.conv2(y)) + self.downsample(x)))


def _stage(in_chs: int, out_chs: int, blocks: int, stride: int, kind: Shortcut = "pad") -> nn.Sequential:
    return nn.Sequential(
        *(CIFARBlock(in_chs if i == 0 else out_chs, out_chs, stride if i == 0 else 1, kind) for i in range(blocks))
    )


@MODELS.register_module()
class CIFARResNet(CIFARNet):
    """ResNet of 6n + 2 layers for small images (arXiv 1512.03385, section 4.2), with timm's module names.

    Taps: `layer1` … `layer3` (B, w·2^i, H_i, W_i), `preact1` … `preact3`, `layerN.M.preact`, `features`, `global_pool`
    (B, 4w), `fc`.

    The resnet8x4 and resnet32x4 of the CIFAR-100 tables have `widths=(32, 64, 128, 256)`; all ResNets of those tables
    have `shortcut='conv'`, where He et al. pad.

    Args:
        depth: 8, 14, 20, 32, 44, 56, 110, …
        width: channels of the first stage; the next two have twice and four times as many.
        stem_stride: 2 halves every map, for a model that is four times as cheap.
        mean, std: of the input on a [0, 1] scale; one number, or one for each channel.
        input_size: (channels, height, width); 32 × 32 pixels where not given.
        widths: channels of the stem and the three stages, in place of `width`.
        shortcut: 'pad' (option A, no parameters) or 'conv' (option B, 1×1 convolution and batch norm).
    Raises: ConfigError for a depth that is not 6n + 2, or widths or a shortcut that do not exist.
    """

    def __init__(
        self,
        depth: int = 20,
        width: int = 16,
        in_chans: int = 3,
        num_classes: int = 10,
        stem_stride: int = 1,
        mean: Stat = 0.5,
        std: Stat = 0.5,
        input_size: Sequence[int] | None = None,
        widths: Sequence[int] | None = None,
        shortcut: str = "pad",
    ) -> None:
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ConfigError(f"depth of CIFARResNet is 6n + 2 (8, 14, 20, 32, …); got {depth}")
        if shortcut not in ("pad", "conv"):
            raise ConfigError(f"shortcut of CIFARResNet is 'pad' or 'conv'; got {shortcut!r}")
        stem, *stages = (width, width, 2 * width, 4 * width) if widths is None else tuple(widths)
        if len(stages) != 3:
            raise ConfigError(f"widths of CIFARResNet are the stem's and three stages'; got {tuple(widths or ())}")
        super().__init__(num_classes, in_chans, mean, std, input_size)
        kind = cast(Shortcut, shortcut)
        self.conv1 = nn.Conv2d(in_chans, stem, 3, stem_stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.act1 = nn.ReLU()
        self.layer1 = _stage(stem, stages[0], blocks, 1, kind)
        self.layer2 = _stage(stages[0], stages[1], blocks, 2, kind)
        self.layer3 = _stage(stages[1], stages[2], blocks, 2, kind)
        self.finish(stages[2])

    def before(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, stem, H, W)."""
        return self.act1(self.bn1(self.conv1(x)))


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 with four times the width at the end; `preact` is the output before the last ReLU."""

    def __init__(self, in_chs: int, width: int, stride: int) -> None:
        super().__init__()
        out_chs = 4 * width
        self.conv1 = nn.Conv2d(in_chs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, out_chs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_chs)
        self.downsample = shortcut("conv", in_chs, out_chs, stride)
        self.preact = nn.Identity()
        self.act3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 4 · width, H / stride, W / stride)."""
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.act2(self.bn2(self.conv2(y)))))
        return self.act3(self.preact(y + self.downsample(x)))


@MODELS.register_module()
class CIFARResNet50(CIFARNet):
    """ResNet-50 with a 3×3 stem and no pooling after it: four stages of 256 … 2048 channels, 32 … 4 pixels a side.

    Args: as of `CIFARResNet`.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 100,
        mean: Stat = 0.5,
        std: Stat = 0.5,
        input_size: Sequence[int] | None = None,
    ) -> None:
        super().__init__(num_classes, in_chans, mean, std, input_size)
        self.conv1 = nn.Conv2d(in_chans, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.act1 = nn.ReLU()
        channels = 64
        for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
            strides = [1 if stage == 1 else 2] + [1] * (blocks - 1)
            layers = []
            for stride in strides:
                layers.append(Bottleneck(channels, width, stride))
                channels = 4 * width
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        self.finish(channels)

    def before(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 64, H, W)."""
        return self.act1(self.bn1(self.conv1(x)))


# --- Wide ResNet ---


class WideBlock(nn.Module):
    """Pre-activation block: batch norm and ReLU come first; `preact` is what the first ReLU reads."""

    def __init__(self, in_chs: int, out_chs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_chs)
        self.preact = nn.Identity()
        self.act1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_chs, out_chs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_chs)
        self.act2 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, 1, 1, bias=False)
        # Where the widths differ the projection reads the activated input, as Zagoruyko & Komodakis have it.
        self.project = None if in_chs == out_chs else nn.Conv2d(in_chs, out_chs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H / stride, W / stride)."""
        y = self.act1(self.preact(self.bn1(x)))
        kept = x if self.project is None else self.project(y)
        return kept + self.conv2(self.act2(self.bn2(self.conv1(y))))


@MODELS.register_module()
class WideResNet(CIFARNet):
    """WRN-d-k (arXiv 1605.07146): 6n + 4 layers, stages of 16k, 32k, 64k channels.

    Taps as of `CIFARResNet`, but a stage ends in a sum: `layerN` has negative values, `preactN` is the first batch
    norm of the next stage, and `features` is the last map after batch norm and ReLU.

    Args:
        depth: d = 10, 16, 22, 28, 40, …
        widen: k.
        mean, std, input_size: as of `CIFARResNet`.
    Raises: ConfigError for a depth that is not 6n + 4.
    """

    def __init__(
        self,
        depth: int = 16,
        widen: int = 2,
        in_chans: int = 3,
        num_classes: int = 100,
        mean: Stat = 0.5,
        std: Stat = 0.5,
        input_size: Sequence[int] | None = None,
    ) -> None:
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ConfigError(f"depth of WideResNet is 6n + 4 (10, 16, 22, 28, 40, …); got {depth}")
        super().__init__(num_classes, in_chans, mean, std, input_size)
        self.conv1 = nn.Conv2d(in_chans, 16, 3, 1, 1, bias=False)
        channels = 16
        for stage in (1, 2, 3):
            width, layers = 16 * widen * 2 ** (stage - 1), []
            for i in range(blocks):
                layers.append(WideBlock(channels, width, 2 if stage > 1 and i == 0 else 1))
                channels = width
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        self.bn1 = nn.BatchNorm2d(channels)
        self.preact3 = nn.Identity()
        self.act1 = nn.ReLU()
        self.finish(channels)

    def name_preacts(self) -> None:
        """The first two are inside the stage that follows; the third is a module of its own."""
        _, second, third = self.stages()
        self.preact1, self.preact2 = second[0].preact, third[0].preact

    def before(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 16, H, W)."""
        return self.conv1(x)

    def after(self, x: Tensor) -> Tensor:
        """The last batch norm and ReLU."""
        return self.act1(self.preact3(self.bn1(x)))
