"""Digit scenes, 64×64: real handwritten digits over textured backgrounds, with exact masks; nothing to download.

Sizes: 600 scenes are 37 steps an epoch at batch 16; the student trains in seconds, the whole group within a minute on
two cores.
"""

task = "semantic-segmentation"
benchmark = "digit-scenes"
benchmark_version = 1
pair = "mit16-mit8"
title = "Digit scenes (64×64), masks"

data = dict(
    train=dict(type="DigitScenes", split="train", count=600),
    val=dict(type="DigitScenes", split="val", count=100),
    test=dict(type="DigitScenes", split="test", count=300),
    batch_size=16,
    eval_batch_size=50,
)
teacher_data = dict(train=dict(type="DigitScenes", split="train", count=2000))
adapter = dict(type="SegmentationAdapter")
metric = dict(type="SegmentationMetric", primary="mIoU")

_shape = dict(num_classes=11, input_size=(3, 64, 64), mean=0.5, std=0.5)
teacher = dict(type="SegFormer", width=16, num_layers=(1, 1, 1, 1), channels=64, drop_path_rate=0.0, **_shape)
student = dict(type="SegFormer", width=8, num_layers=(1, 1, 1, 1), channels=32, drop_path_rate=0.0, **_shape)
recipe = dict(
    epochs=8,
    optimizer=dict(type="AdamW", lr=3e-3, weight_decay=0.01),
    param_scheduler=[dict(type="CosineAnnealingLR")],
)
teacher_recipe = dict(recipe, epochs=10)
cache = dict(dtype="float16")

methods = dict(
    KD=dict(links=[dict(type="KD", weight=1.0, temperature=1.0)]),
    CWD=dict(links=[dict(type="CWD", taps=[("logits", "logits")], temperature=4.0, weight=3.0)]),
)
