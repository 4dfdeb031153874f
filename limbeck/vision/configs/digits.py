"""Handwritten digits, 8×8: a ResNet-20 teaches a ResNet-8 of a quarter of its width. The smallest real benchmark."""

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

# Weights: the authors', times the factor that did best on validation (benchmarks/selection/digits.json).
methods = dict(
    KD=dict(task_weight=0.1, links=[dict(type="KD", weight=0.9, temperature=4.0)]),
    DKD=dict(
        links=[
            dict(type="DKD", weight=1.0, alpha=1.0, beta=8.0, temperature=4.0, schedule=dict(type="warmup", end=0.1))
        ]
    ),
    DIST=dict(links=[dict(type="DIST", weight=0.2, temperature=4.0)]),
    FitNet=dict(links=[dict(type="FitNet", weight=1.0)]),
    AT=dict(links=[dict(type="AT", weight=1.0)]),
    SPKD=dict(links=[dict(type="SPKD", weight=300.0)]),
)
