"""Image classifiers: the nets of the CIFAR tables, any timm model, and EfficientNet-Lite with ImageNet weights.

Every model has `normalization`, the mean and standard deviation that it wants on a [0, 1] pixel scale, and
`input_size`, the (channels, height, width) that it is fed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from limbeck.engine.inputs import Normalization, Stat, describe
from limbeck.engine.lite_weights import LITE_MEAN, LITE_STD, LITE_WEIGHTS, read_lite_weights
from limbeck.engine.registry import MODELS
from limbeck.errors import ConfigError, UnknownName
from limbeck.vision._cifar10_weights import read_cifar10_weights
from limbeck.vision._cifar_mobile import CIFARVGG, CIFARMobileNetV2, CIFARShuffleNetV1, CIFARShuffleNetV2
from limbeck.vision._cifar_models import CIFARResNet, CIFARResNet50, OptionAShortcut, WideResNet
from limbeck.vision._cifar_net import CIFARNet, GlobalPool
from limbeck.vision._search_space import DepthResNet
from limbeck.vision._simkd_student import SimKDStudent

__all__ = [
    "CIFARVGG",
    "CIFAR10ResNet",
    "CIFARMobileNetV2",
    "CIFARNet",
    "CIFARResNet",
    "CIFARResNet50",
    "CIFARShuffleNetV1",
    "CIFARShuffleNetV2",
    "DepthResNet",
    "EfficientNetLite",
    "GlobalPool",
    "MLPMixer",
    "Normalization",
    "OptionAShortcut",
    "SimKDStudent",
    "Stat",
    "WideResNet",
    "convert_akamaster_keys",
    "describe",
    "timm_model",
]


def convert_akamaster_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name akamaster/pytorch_resnet_cifar10's tensors as `CIFARResNet` does and add the batch counters it lacks."""
    converted: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key.removeprefix("module.")
        converted["fc." + name.removeprefix("linear.") if name.startswith("linear.") else name] = value
    for name in [n for n in converted if n.endswith(".running_mean")]:
        converted.setdefault(name.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
    return converted


@MODELS.register_module()
def CIFAR10ResNet(depth: int = 56, pretrained: bool = True, num_classes: int = 10, **kwargs: Any) -> CIFARResNet:  # noqa: N802
    """`CIFARResNet` of width 16 with weights trained on CIFAR-10's original pixels; 3 × 32 × 32, their normalisation.

    Args:
        depth: 20, 32, 44 or 56.
        pretrained: False builds the architecture alone, for weights that are loaded afterwards.
        num_classes: with other than 10 the classifier is new.
        kwargs: `mean` and `std`, where not those that the weights were trained with.
    Raises: ConfigError for another depth; DataMissing; CorruptFile.
    """
    model = CIFARResNet(
        depth=depth, num_classes=num_classes, **{"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), **kwargs}
    )
    if pretrained:
        state = convert_akamaster_keys(read_cifar10_weights(depth))
        own = model.state_dict()
        model.load_state_dict({k: v if v.shape == own[k].shape else own[k] for k, v in state.items()})
    return model


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


@MODELS.register_module()
def MLPMixer(  # noqa: N802 - configs name it as a class
    img_size: int = 32,
    patch_size: int = 4,
    num_blocks: int = 4,
    embed_dim: int = 96,
    num_classes: int = 10,
    in_chans: int = 3,
    mean: Stat = 0.5,
    std: Stat = 0.5,
) -> nn.Module:
    """timm's MLP-Mixer (arXiv 2105.01601) of any size, which its named ones do not allow; the default is for 32 pixels.

    Taps: `blocks.N` and `norm` (B, (img_size / patch_size)², embed_dim), `head`.

    Raises: ConfigError for a patch that does not divide the image.
    """
    from timm.models.mlp_mixer import MlpMixer

    if patch_size < 1 or img_size % patch_size:
        raise ConfigError(f"patch_size of MLPMixer divides img_size {img_size}; got {patch_size}")
    model = MlpMixer(num_classes, img_size, in_chans, patch_size, num_blocks, embed_dim)
    return describe(model, mean, std, (in_chans, img_size, img_size))


# --- EfficientNet-Lite ---


@MODELS.register_module()
def EfficientNetLite(  # noqa: N802 - configs name it as a class
    variant: int = 0,
    num_classes: int = 1000,
    pretrained: bool = True,
    input_size: Sequence[int] | None = None,
    frozen_backbone: bool = False,
    **model_kwargs: Any,
) -> nn.Module:
    """EfficientNet-Lite 0, 1 or 2 with the ImageNet weights that the 'pretrained' extra ships (Apache-2.0).

    The model is timm's `tf_efficientnet_lite{variant}`. With other than 1000 classes the classifier is new; with 0 the
    model gives its pooled feature.

    Args:
        pretrained: False builds the architecture alone, for weights that are loaded afterwards.
        input_size: (3, height, width); 224, 240 or 260 pixels a side where not given.
        frozen_backbone: train the classifier alone (a linear probe): all else keeps its weights, and batch norm its
            statistics, in training mode too.
    Raises: ConfigError for an unknown variant; ExtraMissing; CorruptFile when the packaged file is not the known one.
    """
    import timm

    if variant not in LITE_WEIGHTS:
        raise ConfigError(f"variant of EfficientNetLite is one of {list(LITE_WEIGHTS)}; got {variant!r}")
    model = timm.create_model(f"tf_efficientnet_lite{variant}", num_classes=num_classes, **model_kwargs)
    if num_classes not in (
        0,
        1000,
    ):  # timm draws wide weights for few classes, whose first loss is several times ln(classes)
        nn.init.normal_(cast(nn.Linear, model.classifier).weight, std=0.01)
    if pretrained:
        state = read_lite_weights(variant)
        if num_classes != 1000:
            own = model.state_dict()
            state = {k: v for k, v in state.items() if not k.startswith("classifier.")}
            state |= {k: own[k] for k in ("classifier.weight", "classifier.bias") if k in own}
        model.load_state_dict(state)
    if frozen_backbone:
        model = timm.layers.freeze_batch_norm_2d(model).requires_grad_(False)  # type: ignore[attr-defined]
        cast(nn.Module, model.classifier).requires_grad_(True)
    side = LITE_WEIGHTS[variant][1]
    return describe(model, LITE_MEAN, LITE_STD, (3, side, side) if input_size is None else input_size)
