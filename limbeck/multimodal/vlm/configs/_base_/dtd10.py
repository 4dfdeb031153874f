"""Ten textures of DTD, 160 pixels: a pool of 612 images of which a few a class are labelled.

The zero-shot teacher is weak here: it has learnt objects. Students are ResNet-8 at 48 pixels, from random weights, for
4 epochs of 50 steps; all else as `cifar10.py`, the rate too. On val, plain students with 16 labels a class, seeds 100
and 101, have 27.3; MobileNetV3-small ×0.5 at 64 pixels had 17.8, 18.3 and 20.4 at rates of 1e-3, 3e-3 and 1e-2.
"""

from limbeck.multimodal.vlm.configs._base_.cifar10 import adapter, cache, metric, task, teacher_recipe  # noqa: F401
from limbeck.multimodal.vlm.configs._base_.cifar10 import recipe as _recipe
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
        type="CIFARResNet",
        depth=8,
        width=16,
        input_size=(3, 48, 48),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        num_classes=0,
    ),
    num_classes=10,
)
recipe = dict(_recipe, epochs=4)
methods = _few_labels(student)

# Chosen on val: benchmarks/selection/dho-dtd10.json has the grid, 4 labels a class.
for _name, _weight in dict(CLIPFD=200_000.0, CLIPCRD=0.1).items():
    methods[_name]["links"][0]["weight"] = _weight
