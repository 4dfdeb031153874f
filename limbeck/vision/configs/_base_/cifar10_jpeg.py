"""CIFAR-10 as JPEG copy, 4,000 training images: the data, teacher, recipe and logit methods that three students share.

The teacher is the published ResNet-56 of CIFAR-10's original pixels, fine-tuned on 15,000 of these. Sizes: 8 epochs of
62 steps of the tiny ViT take about a minute on one core, so 3 students with 8 methods and 3 seeds take some 35 minutes
on two. Images are not augmented, so that the teacher's taps are cached. Val is 1,000 images: it checks the teacher and
chooses nothing.
"""

task = "image-classification"
benchmark = "cifar10-jpeg-cross"
benchmark_version = 1

data = dict(
    train=dict(type="CIFAR10JPEG", split="train", limit=4000),
    val=dict(type="CIFAR10JPEG", split="val", limit=1000),
    test=dict(type="CIFAR10JPEG", split="test"),
    batch_size=64,
)
teacher_data = dict(train=dict(type="CIFAR10JPEG", split="train", limit=15000, augment=dict(pad=4, flip=True), views=0))
adapter = dict(type="VisionAdapter")
metric = dict(type="ClassificationMetric")

teacher = dict(type="CIFAR10ResNet", depth=56)

recipe = dict(
    epochs=8,
    optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.05),
    param_scheduler=[dict(type="CosineAnnealingLR")],
)
teacher_recipe = dict(
    epochs=1,
    optimizer=dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True),
    param_scheduler=[dict(type="CosineAnnealingLR")],
)
cache = dict(dtype="float16")

# Weights: those of `one_family`, chosen on digits and carried over untouched.
methods: dict = dict(
    KD=dict(task_weight=0.1, links=[dict(type="KD", weight=0.9, temperature=4.0)]),
    DIST=dict(links=[dict(type="DIST", weight=0.2, temperature=4.0)]),
)
methods["KD+LS"] = dict(task_weight=0.1, links=[dict(type="KD", weight=9.0, temperature=2.0, standardise=True)])
