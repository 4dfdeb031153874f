"""Handwritten digits, 8×8: a ResNet-20 teaches a ResNet-8 of a quarter of its width. The smallest real benchmark."""

from limbeck.vision.configs._base_.one_family import methods as _shared

task = "image-classification"
benchmark = "digits"
benchmark_version = 1
pair = "resnet20-resnet8"
title = "Handwritten digits (8×8)"

data = dict(
    train=dict(type="Digits", split="train", augment=dict(pad=1), views=0),
    val=dict(type="Digits", split="val"),
    test=dict(type="Digits", split="test"),
    batch_size=64,
)
adapter = dict(type="VisionAdapter")
metric = dict(type="ClassificationMetric")

_shape = dict(in_chans=1, num_classes=10, mean=(0.3,), std=(0.38,), input_size=(1, 8, 8))
teacher = dict(type="CIFARResNet", depth=20, width=16, **_shape)
student = dict(type="CIFARResNet", depth=8, width=4, **_shape)

recipe = dict(
    epochs=15,
    optimizer=dict(type="SGD", lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True),
    param_scheduler=[dict(type="CosineAnnealingLR")],
)
teacher_recipe = dict(recipe, epochs=20)

methods = dict(
    **_shared,
    SimKD=dict(
        task_weight=0.0,
        student=dict(type="SimKDStudent", student=student, teacher_channels=64),
        links=[dict(type="SimKD", weight=1.0)],
    ),
)
