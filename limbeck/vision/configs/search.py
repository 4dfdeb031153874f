"""Students for DisWOT to rank: a ResNet-20 teaches depth-mutable ResNets of 8 channels by KD on Fashion-MNIST.

The suite `search` trains 21 candidates with 2 seeds each. For 25 core-seconds a run the stem halves the image, the
student sees 4,000 images for 6 epochs (372 steps of 10 to 55 ms), and val is 1,000 images, which choose nothing. The
teacher, of `fashion_mnist`'s size, sees 20,000 images for 3 epochs: 150 core-seconds. Pixels are not augmented, so its
training logits are computed once and cached.
"""

task = "image-classification"
benchmark = "search"
benchmark_version = 1
pair = "resnet20-depthresnet"
title = "Fashion-MNIST, 4,000 training images: students of different depths"

data = dict(
    train=dict(type="FashionMNIST", split="train", limit=4000),
    val=dict(type="FashionMNIST", split="val", limit=1000),
    test=dict(type="FashionMNIST", split="test"),
    batch_size=64,
)
teacher_data = dict(train=dict(type="FashionMNIST", split="train", limit=20000))
adapter = dict(type="VisionAdapter")
metric = dict(type="ClassificationMetric")

_shape = dict(in_chans=1, num_classes=10, mean=(0.286,), std=(0.353,), input_size=(1, 28, 28))
teacher = dict(type="CIFARResNet", depth=20, width=16, **_shape)
student = dict(type="DepthResNet", depths=(3, 3, 3), width=8, stem_stride=2, **_shape)

recipe = dict(
    epochs=6,
    optimizer=dict(type="SGD", lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True),
    param_scheduler=[dict(type="CosineAnnealingLR")],
)
teacher_recipe = dict(recipe, epochs=3)
cache = dict(dtype="float16")

methods = dict(
    KD=dict(task_weight=0.1, links=[dict(type="KD", weight=0.9, temperature=4.0)]),
)
