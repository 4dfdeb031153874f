"""Digit scenes, 64×64: real handwritten digits over textured backgrounds, with exact masks; nothing to download.

Sizes: 2,000 scenes are 125 steps an epoch at batch 16. Fewer steps, or equal class weights, leave a network that calls
everything background.
"""

task = "semantic-segmentation"
benchmark = "digit-scenes"
benchmark_version = 1
pair = "mobilenetv2_100-mobilenetv2_035"
title = "Digit scenes (64×64), masks"

data = dict(
    train=dict(type="DigitScenes", split="train"),
    val=dict(type="DigitScenes", split="val", count=100),
    test=dict(type="DigitScenes", split="test", count=300),
    batch_size=16,
    eval_batch_size=50,
)
adapter = dict(type="SegmentationAdapter")
metric = dict(type="SegmentationMetric", primary="mIoU")

_shape = dict(num_classes=11, input_size=(3, 64, 64), mean=0.5, std=0.5, class_weight=(0.1, *[1.0] * 10))
teacher = dict(type="MobileNetV2Segmentor", width=1.0, channels=64, **_shape)
student = dict(type="MobileNetV2Segmentor", width=0.35, channels=32, **_shape)
recipe = dict(
    epochs=16,
    optimizer=dict(type="AdamW", lr=5e-3, weight_decay=0.01),
    param_scheduler=[dict(type="CosineAnnealingLR")],
)
cache = dict(dtype="float16")

methods = dict(
    KD=dict(links=[dict(type="KD", weight=1.0, temperature=1.0)]),
    CWD=dict(links=[dict(type="CWD", taps=[("logits", "logits")], temperature=4.0, weight=3.0)]),
)
