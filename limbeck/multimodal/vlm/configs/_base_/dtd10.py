"""Ten textures of DTD, 160 pixels: a pool of 612 images of which a few a class are labelled.

The zero-shot teacher is weak here: it has learnt objects. Students are MobileNetV3-small ×0.5 at 64 pixels, from random
weights; everything else as `cifar10.py`, and as little varied.
"""

from limbeck.multimodal.vlm.configs._base_.cifar10 import adapter, cache, metric, recipe, task, teacher_recipe  # noqa: F401
from limbeck.multimodal.vlm.configs._base_.parts import few_labels as _few_labels

benchmark = "dho-dtd10"
benchmark_version = 1

_train = dict(type="DTD10", augment=dict(scale=(0.5, 1.0)), views=4)
data = dict(
    train=dict(type="PartlyLabelled", split="train", of=_train, shots=4, shots_seed="run"),
    val=dict(type="DTD10", split="val"),
    test=dict(type="DTD10", split="test"),
    batch_size=32,
    unlabelled_batch_size=64,
    steps=50,
)
teacher = dict(
    type="ZeroShotJoined",
    classes=[
        "banded",
        "blotchy",
        "braided",
        "bubbly",
        "bumpy",
        "chequered",
        "cobwebbed",
        "cracked",
        "crosshatched",
        "crystalline",
    ],
    templates="dtd",
    pretrained=True,
)
student = dict(
    type="DualHead",
    backbone=dict(
        type="timm",
        model="mobilenetv3_small_050",
        input_size=(3, 64, 64),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
    num_classes=10,
)
methods = _few_labels(student)
