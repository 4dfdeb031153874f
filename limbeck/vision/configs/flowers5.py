"""Flowers, 128×128: EfficientNet-Lite 2, pretrained on ImageNet, teaches a MobileNetV3-small ×0.5 from scratch.

The teacher is a linear probe: its classifier alone is trained.

Sizes: the student's step takes about 0.2 s on one core, the teacher's forward over a batch 1.3 s. So the teacher trains
four epochs of 47 steps, the student eight, and it sees two augmented views of each photograph, for which the teacher's
taps are computed once and cached.
"""

task = "image-classification"
benchmark = "flowers5"
benchmark_version = 1
pair = "efficientnet_lite2-mobilenetv3_small_050"
title = "Five flowers (128×128), student from scratch"

data = dict(
    train=dict(type="Flowers5", split="train", augment=dict(scale=(0.35, 1.0)), views=2),
    val=dict(type="Flowers5", split="val"),
    test=dict(type="Flowers5", split="test"),
    batch_size=64,
    eval_batch_size=128,
)
teacher_data = dict(train=dict(type="Flowers5", split="train", augment=dict(scale=(0.35, 1.0)), views=0))
adapter = dict(type="VisionAdapter")
metric = dict(type="ClassificationMetric")

teacher = dict(type="EfficientNetLite", variant=2, num_classes=5, input_size=(3, 128, 128), frozen_backbone=True)
student = dict(
    type="timm",
    model="mobilenetv3_small_050",
    num_classes=5,
    input_size=(3, 128, 128),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)

recipe = dict(
    epochs=8,
    optimizer=dict(type="AdamW", lr=3e-3, weight_decay=0.02),
    param_scheduler=[dict(type="CosineAnnealingLR")],
)
teacher_recipe = dict(
    epochs=4,
    optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.02),
    param_scheduler=[dict(type="CosineAnnealingLR")],
)
cache = dict(dtype="float16")

# Weights: those of `one_family`, chosen on digits and carried over untouched.
_kd = dict(type="KD", weight=0.9, temperature=4.0)
methods: dict = dict(
    KD=dict(task_weight=0.1, links=[_kd]),
    DIST=dict(links=[dict(type="DIST", weight=0.2, temperature=4.0)]),
    RKD=dict(links=[dict(type="RKD", weight=0.01, taps=[("global_pool", "flatten")])]),
    SPKD=dict(links=[dict(type="SPKD", weight=300.0, taps=[("bn2", "blocks.5")])]),
    FitNet=dict(links=[dict(type="FitNet", weight=1.0, taps=[("blocks.6", "blocks.5")])]),
)
methods["KD+LS"] = dict(task_weight=0.1, links=[dict(type="KD", weight=9.0, temperature=2.0, standardise=True)])
methods["KD+ND"] = dict(task_weight=0.1, links=[_kd, dict(type="ND", weight=2.0, taps=[("global_pool", "flatten")])])
