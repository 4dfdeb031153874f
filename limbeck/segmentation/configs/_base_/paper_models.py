"""The networks of the published tables as mmsegmentation configs; CNNs name ImageNet weights by mmengine's aliases.

Widths are those of mmsegmentation's configs, where the papers' code has others it is said.
"""

from limbeck.segmentation.models import mix_transformer

_norm = dict(type="SyncBN", requires_grad=True)


def _head(kind: str, in_channels: int, channels: int, **options) -> dict:
    return dict(
        type=kind, in_channels=in_channels, in_index=3, channels=channels, dropout_ratio=0.1, norm_cfg=_norm, **options
    )


def _auxiliary(in_channels: int, channels: int) -> dict:
    """Over the third stage, with 0.4 of the loss; averaged over labelled pixels, as the main head's."""
    return dict(
        type="FCNHead",
        in_channels=in_channels,
        in_index=2,
        channels=channels,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        norm_cfg=_norm,
        loss_decode=dict(type="CrossEntropyLoss", avg_non_ignore=True, loss_weight=0.4),
    )


def _resnet(depth: int) -> dict:
    """Strides 4, 8, 8, 8: the last two stages are dilated."""
    return dict(
        type="ResNetV1c",
        depth=depth,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        dilations=(1, 1, 2, 4),
        strides=(1, 2, 1, 1),
        norm_cfg=_norm,
        style="pytorch",
        contract_dilation=True,
        init_cfg=dict(type="Pretrained", checkpoint=f"open-mmlab://resnet{depth}_v1c"),
    )


def deeplabv3_resnet(depth: int, channels: int) -> dict:
    """DeepLabV3 (arXiv 1706.05587) on a dilated ResNet, output stride 8, with an auxiliary head.

    CIRKD's code has heads of 256 channels for ResNet-101 and 128 for ResNet-18; mmsegmentation 512 and 128.
    """
    width = 512 if depth < 50 else 2048
    return dict(
        type="EncoderDecoder",
        backbone=_resnet(depth),
        decode_head=_head("ASPPHead", width, channels, dilations=(1, 12, 24, 36)),
        auxiliary_head=_auxiliary(width // 2, max(64, channels // 2)),
        test_cfg=dict(mode="whole"),
    )


def deeplabv3_mobilenetv2(channels: int = 128) -> dict:
    """DeepLabV3 on MobileNetV2 (arXiv 1801.04381), output stride 8, without an auxiliary head, as CIRKD has it.

    Our assumption: a head of ResNet-18's 128 channels, where mmsegmentation has 512.
    """
    backbone = dict(
        type="MobileNetV2",
        widen_factor=1.0,
        strides=(1, 2, 2, 1, 1, 1, 1),
        dilations=(1, 1, 1, 2, 2, 4, 4),
        out_indices=(1, 2, 4, 6),
        norm_cfg=_norm,
        init_cfg=dict(type="Pretrained", checkpoint="mmcls://mobilenet_v2"),
    )
    head = _head("ASPPHead", 320, channels, dilations=(1, 12, 24, 36))
    return dict(type="EncoderDecoder", backbone=backbone, decode_head=head, test_cfg=dict(mode="whole"))


def pspnet_resnet(depth: int, channels: int) -> dict:
    """PSPNet (arXiv 1612.01105) on a dilated ResNet, output stride 8, with an auxiliary head."""
    width = 512 if depth < 50 else 2048
    return dict(
        type="EncoderDecoder",
        backbone=_resnet(depth),
        decode_head=_head("PSPHead", width, channels, pool_scales=(1, 2, 3, 6)),
        auxiliary_head=_auxiliary(width // 2, max(64, channels // 2)),
        test_cfg=dict(mode="whole"),
    )


def segformer(size: str, *, channels: int) -> dict:
    """SegFormer (arXiv 2105.15203) 'b0' or 'b2'.

    ImageNet weights of Mix Transformers have no alias: give the backbone of a teacher an `init_cfg` with their file, as
    mmsegmentation's configs do, and set pretrained_backbone.
    """
    width, layers = {"b0": (32, [2, 2, 2, 2]), "b2": (64, [3, 4, 6, 3])}[size]
    head = dict(
        type="SegformerHead",
        in_channels=[width * n for n in (1, 2, 5, 8)],
        in_index=[0, 1, 2, 3],
        channels=channels,
        dropout_ratio=0.1,
        norm_cfg=_norm,
    )
    backbone = mix_transformer(width, layers)
    return dict(type="EncoderDecoder", backbone=backbone, decode_head=head, test_cfg=dict(mode="whole"))
