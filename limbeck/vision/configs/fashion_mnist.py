"""Fashion-MNIST, 28×28: a ResNet-20 teaches a ResNet-8 of half its width, one architecture family.

The student sees 10,000 of the 55,000 training images, so that 36 runs fit into an hour on two cores; the teacher sees
30,000. Pixels are not augmented, so the teacher's taps are computed once and cached.
"""

from limbeck.vision.configs._base_.one_family import methods as _shared

task = "image-classification"
benchmark = "fashion-mnist"
benchmark_version = 1
pair = "resnet20-resnet8"
title = "Fashion-MNIST, 10,000 training images"

data = dict(
    train=dict(type="FashionMNIST", split="train", limit=10000),
    val=dict(type="FashionMNIST", split="val"),
    test=dict(type="FashionMNIST", split="test"),
    batch_size=64,
)
teacher_data = dict(train=dict(type="FashionMNIST", split="train", limit=30000))
adapter = dict(type="VisionAdapter")
metric = dict(type="ClassificationMetric")

_shape = dict(in_chans=1, num_classes=10, mean=(0.286,), std=(0.353,), input_size=(1, 28, 28))
teacher = dict(type="CIFARResNet", depth=20, width=16, **_shape)
student = dict(type="CIFARResNet", depth=8, width=8, **_shape)

recipe = dict(
    epochs=15,
    optimizer=dict(type="SGD", lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True),
    param_scheduler=[dict(type="CosineAnnealingLR")],
)
teacher_recipe = dict(recipe, epochs=5)
cache = dict(dtype="float16")

methods = dict(
    **_shared,
    SimKD=dict(
        task_weight=0.0,
        student=dict(type="SimKDStudent", student=student, teacher_channels=64),
        links=[dict(type="SimKD", weight=1.0)],
    ),
)
