"""Image classifiers: CIFAR ResNets (arXiv 1512.03385), any timm model, and EfficientNet-Lite with ImageNet weights.

Every model has `normalization`, the mean and standard deviation that it wants on a [0, 1] pixel scale, and
`input_size`, the (channels, height, width) that it is fed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.registry import MODELS
from limbeck.errors import ConfigError, UnknownName
from limbeck.vision._lite_weights import LITE_WEIGHTS, read_lite_weights

Stat = float | Sequence[float]


@dataclass(frozen=True, slots=True)
class Normalization:
    """Mean and standard deviation of each input channel, on a [0, 1] pixel scale."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise ConfigError(f"mean {self.mean} and std {self.std} need one value for each channel")
        if min(self.std) <= 0:
            raise ConfigError(f"std must be positive; got {self.std}")


def describe(model: nn.Module, mean: Stat, std: Stat, input_size: Sequence[int]) -> nn.Module:
    """Set `normalization` and `input_size` on a model and return it; a single number serves every channel.

    Raises: ConfigError when mean, std and input_size disagree about the channels.
    """
    size = tuple(int(n) for n in input_size)
    if len(size) != 3 or min(size) < 1:
        raise ConfigError(f"input_size is (channels, height, width); got {tuple(input_size)}")
    values = Normalization(_per_channel(mean, size[0]), _per_channel(std, size[0]))
    if len(values.mean) != size[0]:
        raise ConfigError(f"mean has {len(values.mean)} values, input_size {size} has {size[0]} channels")
    model.normalization = values  # type: ignore[assignment]  # nn.Module types attributes as tensors or modules
    model.input_size = size  # type: ignore[assignment]
    return model


def _per_channel(value: Stat, channels: int) -> tuple[float, ...]:
    if isinstance(value, (int, float)):
        return (float(value),) * channels
    return tuple(float(v) for v in value)


# --- CIFAR ResNets ---


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


class CIFARBlock(nn.Module):
    """Basic block; `preact` is its output before the last ReLU, which the CIFAR literature taps."""

    def __init__(self, in_chs: int, out_chs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chs, out_chs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_chs)
        self.act1 = nn.ReLU()  # not in place: an in-place ReLU would overwrite a tapped batch norm
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_chs)
        same = stride == 1 and in_chs == out_chs
        self.downsample = nn.Identity() if same else OptionAShortcut(in_chs, out_chs, stride)
        self.preact = nn.Identity()
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H / stride, W / stride)."""
        y = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.preact(self.bn2(self.conv2(y)) + self.downsample(x)))


class GlobalPool(nn.Module):
    """Mean over the positions: (B, C, H, W) to (B, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


@MODELS.register_module()
class CIFARResNet(nn.Module):
    """ResNet of 6n + 2 layers for small images (arXiv 1512.03385, section 4.2), with timm's module names.

    Taps: `layer1` … `layer3` (B, w·2^i, H_i, W_i), `layerN.M.preact`, `global_pool` (B, 4w), `fc`.

    Args:
        depth: 8, 14, 20, 32, 44, 56, 110, …
        width: channels of the first stage; the next two have twice and four times as many.
        stem_stride: 2 halves every map, for a model that is four times as cheap.
        mean, std: of the input on a [0, 1] scale; one number, or one for each channel.
        input_size: (channels, height, width); 32 × 32 pixels where not given.
    Raises: ConfigError for a depth that is not 6n + 2.
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
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ConfigError(f"depth of CIFARResNet is 6n + 2 (8, 14, 20, 32, …); got {depth}")
        size = tuple(input_size) if input_size is not None else (in_chans, 32, 32)
        if size[0] != in_chans:
            raise ConfigError(f"input_size {size} has {size[0]} channels, in_chans is {in_chans}")
        describe(self, mean, std, size)
        self.num_classes = num_classes
        self.num_features = 4 * width
        self.conv1 = nn.Conv2d(in_chans, width, 3, stem_stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU()
        self.layer1 = _stage(width, width, blocks, 1)
        self.layer2 = _stage(width, 2 * width, blocks, 2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, 2)
        self.global_pool = GlobalPool()
        self.fc = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the last map (B, 4w, H / 4, W / 4)."""
        x = self.act1(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map to logits (B, classes), or to the pooled feature (B, 4w)."""
        pooled = self.global_pool(x)
        return pooled if pre_logits else self.fc(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to logits (B, classes)."""
        return self.forward_head(self.forward_features(x))


def _stage(in_chs: int, out_chs: int, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        *(CIFARBlock(in_chs if i == 0 else out_chs, out_chs, stride if i == 0 else 1) for i in range(blocks))
    )


def convert_akamaster_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name akamaster/pytorch_resnet_cifar10's tensors as `CIFARResNet` does and add the batch counters it lacks."""
    converted: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key.removeprefix("module.")
        converted["fc." + name.removeprefix("linear.") if name.startswith("linear.") else name] = value
    for name in [n for n in converted if n.endswith(".running_mean")]:
        converted.setdefault(name.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
    return converted


# --- timm ---


@MODELS.register_module(name="timm")
def timm_model(
    model: str,
    pretrained: bool = False,
    num_classes: int = 10,
    in_chans: int = 3,
    mean: Stat | None = None,
    std: Stat | None = None,
    input_size: Sequence[int] | None = None,
    **model_kwargs: Any,
) -> nn.Module:
    """Any timm classifier, as timm builds it: taps are timm's module names.

    Args:
        model: timm's name, with or without the tag of the weights; 'hf-hub:…' and 'local-dir:…' work as in timm.
        mean, std, input_size: what the input is; timm's for this model where not given.
        model_kwargs: for the architecture (`img_size`, `patch_size`, `depth`, …).
    Raises: UnknownName for a model that timm does not have; ConfigError for arguments that it does not take.
    """
    import timm

    if ":" not in model and not timm.is_model(model):
        raise UnknownName("timm model", model, timm.list_models())
    try:
        built = timm.create_model(
            model, pretrained=pretrained, num_classes=num_classes, in_chans=in_chans, **model_kwargs
        )
    except TypeError as error:
        raise ConfigError(f"timm model {model!r} does not take these arguments: {error}") from error
    cfg = cast(Mapping[str, Any], built.pretrained_cfg)
    if input_size is None:
        side = model_kwargs.get("img_size", cfg["input_size"][1:])
        input_size = (in_chans, *((side, side) if isinstance(side, int) else side))
    return describe(
        built,
        _fit_channels(cfg["mean"], in_chans) if mean is None else mean,
        _fit_channels(cfg["std"], in_chans) if std is None else std,
        input_size,
    )


def _fit_channels(values: Sequence[float], channels: int) -> Stat:
    return tuple(values) if len(values) == channels else sum(values) / len(values)


# --- EfficientNet-Lite ---

# The TensorFlow originals take (pixel - 127) / 128.
LITE_MEAN, LITE_STD = 127 / 255, 128 / 255


@MODELS.register_module()
def EfficientNetLite(  # noqa: N802 - configs name it as a class
    variant: int = 0,
    num_classes: int = 1000,
    pretrained: bool = True,
    input_size: Sequence[int] | None = None,
    **model_kwargs: Any,
) -> nn.Module:
    """EfficientNet-Lite 0, 1 or 2 with the ImageNet weights that the 'pretrained' extra ships (Apache-2.0).

    The model is timm's `tf_efficientnet_lite{variant}`. With other than 1000 classes the classifier is new.

    Args:
        pretrained: False builds the architecture alone, for weights that are loaded afterwards.
        input_size: (3, height, width); 224, 240 or 260 pixels a side where not given.
    Raises: ConfigError for an unknown variant; ExtraMissing; CorruptFile when the packaged file is not the known one.
    """
    import timm

    if variant not in LITE_WEIGHTS:
        raise ConfigError(f"variant of EfficientNetLite is one of {list(LITE_WEIGHTS)}; got {variant!r}")
    model = timm.create_model(f"tf_efficientnet_lite{variant}", num_classes=num_classes, **model_kwargs)
    if pretrained:
        state = read_lite_weights(variant)
        if num_classes != 1000:
            own = model.state_dict()
            state |= {k: own[k] for k in ("classifier.weight", "classifier.bias")}
        model.load_state_dict(state)
    side = LITE_WEIGHTS[variant][1]
    return describe(model, LITE_MEAN, LITE_STD, (3, side, side) if input_size is None else input_size)
