"""Digit scenes, 32×32, for the demo: a U-Net teaches one of a third of its width. The smallest segmentation benchmark.

Sizes were chosen on val, so that plain training of the student leaves the plateau where every digit is one class to it,
in seconds: scenes this small have all digits of one size (14 pixels), and maps of half the resolution.

Version 1 had 640 scenes in batches of 16; 400 in batches of 8 take a third less time. On val, seeds 100 to 102: teacher
28.8, plain 15.8, KD 16.9, CWD 20.5; 6 and 7 epochs of 320 to 480 scenes, or half the rate, left plain training lower.
"""

task = "semantic-segmentation"
benchmark = "digit-scenes-demo"
benchmark_version = 2
pair = "unet24-unet8"
title = "Digit scenes (32×32), masks"

_size = (32, 32)
data = dict(
    train=dict(type="DigitScenes", split="train", count=400, size=_size),
    val=dict(type="DigitScenes", split="val", count=80, size=_size),
    test=dict(type="DigitScenes", split="test", count=200, size=_size),
    batch_size=8,
    eval_batch_size=50,
)
adapter = dict(type="SegmentationAdapter")
metric = dict(type="SegmentationMetric", primary="mIoU")


def _unet(width: int) -> dict:
    """U-Net (arXiv 1505.04597) of two stages, `width` and 2 · `width` channels, at strides 2 and 4."""
    norm = dict(type="BN")
    backbone = dict(
        type="UNet",
        base_channels=width,
        num_stages=2,
        strides=(2, 1),
        enc_num_convs=(2, 3),
        dec_num_convs=(1,),
        downsamples=(True,),
        enc_dilations=(1, 1),
        dec_dilations=(1,),
        norm_cfg=norm,
    )
    head = dict(
        type="FCNHead",
        in_channels=width,
        in_index=1,
        channels=2 * width,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.0,
        norm_cfg=norm,
    )
    return dict(
        type="mmseg",
        config=dict(type="EncoderDecoder", backbone=backbone, decode_head=head),
        num_classes=11,
        input_size=(3, *_size),
        mean=0.5,
        std=0.5,
        class_weight=(0.1, *[1.0] * 10),
    )


teacher = _unet(24)
student = _unet(8)
recipe = dict(
    epochs=9,
    optimizer=dict(type="AdamW", lr=2e-2, weight_decay=0.01),
    param_scheduler=[
        dict(type="LinearLR", start_factor=0.04, end=1),
        dict(type="CosineAnnealingLR", begin=1),
    ],
)
cache = dict(dtype="float16")

methods = dict(
    KD=dict(links=[dict(type="KD", weight=1.0, temperature=1.0)]),
    CWD=dict(links=[dict(type="CWD", taps=[("logits", "logits")], temperature=4.0, weight=3.0)]),
)
