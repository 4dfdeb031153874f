"""Plain and mobile nets of the CIFAR tables: VGG, MobileNetV2, ShuffleNet V1 and V2.

Their taps are named by `CIFARNet`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from limbeck.engine.inputs import Stat
from limbeck.engine.registry import MODELS
from limbeck.errors import ConfigError
from limbeck.vision._cifar_net import CIFARNet


def conv_bn(in_chs: int, out_chs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution that keeps the size at stride 1, and batch norm."""
    conv = nn.Conv2d(in_chs, out_chs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_chs))


def shuffle_channels(x: Tensor, groups: int) -> Tensor:
    """Channels (B, C, H, W) of each group in turn: (a, b, c | d, e, f) become (a, d, b, e, c, f)."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


# --- VGG ---

# Convolutions in each of the five stages; all stages but the fourth and fifth end at half the size.
VGG_STAGES = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGGStage(nn.Module):
    """3×3 convolutions with batch norm and ReLU after an optional 2×2 max pooling; `preact` is before the last ReLU."""

    def __init__(self, in_chs: int, out_chs: int, convs: int, pool: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.MaxPool2d(2)] if pool else []
        for i in range(convs):
            layers += [nn.Conv2d(in_chs if i == 0 else out_chs, out_chs, 3, 1, 1), nn.BatchNorm2d(out_chs), nn.ReLU()]
        self.convs = nn.Sequential(*layers[:-1])
        self.preact = nn.Identity()
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H, W), or half the size."""
        return self.act(self.preact(self.convs(x)))


@MODELS.register_module()
class CIFARVGG(CIFARNet):
    """VGG with batch norm (arXiv 1409.1556) for 32 × 32 pixels: a stem of 64 channels, stages of 128, 256, 512, 512.

    `stem` and `layer1` … `layer4` are 32, 16, 8, 4 and 4 pixels a side; one linear layer classifies.

    Args:
        depth: 8, 11, 13, 16 or 19.
        mean, std, input_size: as of `CIFARResNet`.
    Raises: ConfigError for another depth.
    """

    def __init__(
        self,
        depth: int = 8,
        in_chans: int = 3,
        num_classes: int = 100,
        mean: Stat = 0.5,
        std: Stat = 0.5,
        input_size: Sequence[int] | None = None,
    ) -> None:
        if depth not in VGG_STAGES:
            raise ConfigError(f"depth of CIFARVGG is one of {list(VGG_STAGES)}; got {depth}")
        super().__init__(num_classes, in_chans, mean, std, input_size)
        first, *others = VGG_STAGES[depth]
        self.stem = VGGStage(in_chans, 64, first, pool=False)
        channels = 64
        for stage, convs in enumerate(others, 1):
            width = min(2 * channels, 512)
            built = VGGStage(channels, width, convs, pool=stage < 4)
            setattr(self, f"layer{stage}", nn.Sequential(built))
            channels = width
        self.finish(channels)

    def before(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 64, H, W)."""
        return self.stem(x)


# --- MobileNetV2 ---

# Expansion, channels at width 1, blocks, stride of the first; stages of taps end after rows 2, 3, 5 and 7.
MOBILE_ROWS = (
    ((1, 16, 1, 1), (6, 24, 2, 1)),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2), (6, 320, 1, 1)),
)


class InvertedResidual(nn.Module):
    """Expand, depthwise 3×3, project without ReLU: `preact`, the output, may be negative."""

    def __init__(self, in_chs: int, out_chs: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = in_chs * expand
        # An expansion by 1 keeps its 1×1 convolution, as in the code bases of the CIFAR tables.
        self.expand = conv_bn(in_chs, inner)
        self.act1 = nn.ReLU()
        self.depthwise = conv_bn(inner, inner, 3, stride, groups=inner)
        self.act2 = nn.ReLU()
        self.project = conv_bn(inner, out_chs)
        self.residual = stride == 1 and in_chs == out_chs
        self.preact = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H / stride, W / stride)."""
        y = self.project(self.act2(self.depthwise(self.act1(self.expand(x)))))
        return self.preact(x + y if self.residual else y)


@MODELS.register_module()
class CIFARMobileNetV2(CIFARNet):
    """MobileNetV2 (arXiv 1801.04381) of half width: a stem of stride 2, four stages of 16, 8, 4 and 2 pixels a side.

    `layer1` … `layer4` have 12, 16, 48 and 160 channels at width 0.5; a 1×1 convolution to 1280 (`conv_head`) follows.

    Args:
        width: factor on all channels but the last 1280.
        mean, std, input_size: as of `CIFARResNet`.
    """

    def __init__(
        self,
        width: float = 0.5,
        in_chans: int = 3,
        num_classes: int = 100,
        mean: Stat = 0.5,
        std: Stat = 0.5,
        input_size: Sequence[int] | None = None,
    ) -> None:
        super().__init__(num_classes, in_chans, mean, std, input_size)
        channels = int(32 * width)
        self.stem = conv_bn(in_chans, channels, 3, 2)
        self.act1 = nn.ReLU()
        for stage, rows in enumerate(MOBILE_ROWS, 1):
            blocks = []
            for expand, out_chs, repeats, stride in rows:
                for i in range(repeats):
                    blocks.append(InvertedResidual(channels, int(out_chs * width), stride if i == 0 else 1, expand))
                    channels = int(out_chs * width)
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        last = int(1280 * max(width, 1.0))
        self.conv_head = conv_bn(channels, last)
        self.act2 = nn.ReLU()
        self.finish(last)

    def before(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 32 · width, H / 2, W / 2)."""
        return self.act1(self.stem(x))

    def after(self, x: Tensor) -> Tensor:
        """1×1 convolution to 1280 channels."""
        return self.act2(self.conv_head(x))


# --- ShuffleNet ---

STEM = 24  # channels of both ShuffleNets' stems, a 1×1 convolution in the CIFAR form


class ShuffleUnit(nn.Module):
    """ShuffleNet V1's unit: grouped 1×1, shuffle, depthwise 3×3, grouped 1×1; at stride 2 the pooled input is appended.

    `preact` is the output before the last ReLU. A ReLU follows the depthwise convolution, as in the CIFAR code bases.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int, groups: int) -> None:
        super().__init__()
        new = out_chs - in_chs if stride == 2 else out_chs
        inner = new // 4
        self.groups = 1 if in_chs == STEM else groups  # the stem is too thin to be split
        self.reduce = conv_bn(in_chs, inner, groups=self.groups)
        self.act1 = nn.ReLU()
        self.depthwise = conv_bn(inner, inner, 3, stride, groups=inner)
        self.act2 = nn.ReLU()
        self.expand = conv_bn(inner, new, groups=groups)
        self.pool = nn.AvgPool2d(3, 2, 1) if stride == 2 else None
        self.preact = nn.Identity()
        self.act3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H / stride, W / stride)."""
        y = shuffle_channels(self.act1(self.reduce(x)), self.groups)
        y = self.expand(self.act2(self.depthwise(y)))
        return self.act3(self.preact(x + y if self.pool is None else torch.cat([y, self.pool(x)], dim=1)))


class ShuffleUnitV2(nn.Module):
    """ShuffleNet V2's unit: half the channels pass; at stride 2 all go through both branches. The output is shuffled.

    `preact` is the concatenation before ReLU and shuffle; the channels that pass are not negative, so ReLU keeps them.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int) -> None:
        super().__init__()
        half = out_chs // 2
        inner = in_chs if stride == 2 else half
        self.skip: nn.Module | None = None
        if stride == 2:
            self.skip = nn.Sequential(conv_bn(in_chs, in_chs, 3, 2, groups=in_chs), conv_bn(in_chs, half))
        self.reduce = conv_bn(inner, half)
        self.act1 = nn.ReLU()
        self.depthwise = conv_bn(half, half, 3, stride, groups=half)
        self.expand = conv_bn(half, half)
        self.preact = nn.Identity()
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H / stride, W / stride)."""
        kept, y = x.chunk(2, dim=1) if self.skip is None else (self.skip(x), x)
        y = self.expand(self.depthwise(self.act1(self.reduce(y))))
        return shuffle_channels(self.act2(self.preact(torch.cat([kept, y], dim=1))), 2)


@MODELS.register_module()
class CIFARShuffleNetV1(CIFARNet):
    """ShuffleNet V1 with three groups (arXiv 1707.01083): stages of 240, 480, 960 channels, 16, 8, 4 pixels a side.

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
        self.stem = conv_bn(in_chans, STEM)
        self.act1 = nn.ReLU()
        channels = STEM
        for stage, (width, blocks) in enumerate(((240, 4), (480, 8), (960, 4)), 1):
            units = [ShuffleUnit(channels if i == 0 else width, width, 2 if i == 0 else 1, 3) for i in range(blocks)]
            setattr(self, f"layer{stage}", nn.Sequential(*units))
            channels = width
        self.finish(channels)

    def before(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 24, H, W)."""
        return self.act1(self.stem(x))


@MODELS.register_module()
class CIFARShuffleNetV2(CIFARNet):
    """ShuffleNet V2 1× (arXiv 1807.11164): stages of 116, 232, 464 channels, 16, 8, 4 pixels a side, then 1024.

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
        self.stem = conv_bn(in_chans, STEM)
        self.act1 = nn.ReLU()
        channels = STEM
        for stage, (width, blocks) in enumerate(((116, 4), (232, 8), (464, 4)), 1):
            units = [ShuffleUnitV2(channels if i == 0 else width, width, 2 if i == 0 else 1) for i in range(blocks)]
            setattr(self, f"layer{stage}", nn.Sequential(*units))
            channels = width
        self.conv_head = conv_bn(channels, 1024)
        self.act2 = nn.ReLU()
        self.finish(1024)

    def before(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 24, H, W)."""
        return self.act1(self.stem(x))

    def after(self, x: Tensor) -> Tensor:
        """1×1 convolution to 1024 channels."""
        return self.act2(self.conv_head(x))
