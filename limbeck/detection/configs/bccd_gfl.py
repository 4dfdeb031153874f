"""BCCD at 256×192: GFL on EfficientNet-Lite 0 with ImageNet weights teaches one on a ResNet-18 of a sixth's width.

Not measured yet: sizes, recipe and weights are a first guess.
"""

from limbeck.detection.configs._base_.gfl_pair import methods as _methods
from limbeck.detection.configs._base_.gfl_pair import recipe as _recipe
from limbeck.detection.configs._base_.gfl_pair import student as _student

task = "object-detection"
benchmark = "bccd"
benchmark_version = 1
pair = "efficientnet_lite0-resnet18_10"
title = "BCCD: GFL, EfficientNet-Lite 0 → ResNet-18 of width 10"

_size = (192, 256)
_augment = dict(scale=(0.75, 1.5), flip=True)
data = dict(
    train=dict(type="BCCD", split="train", size=_size, augment=_augment, views=8),
    val=dict(type="BCCD", split="val", size=_size),
    test=dict(type="BCCD", split="test", size=_size),
    batch_size=8,
    eval_batch_size=16,
)
teacher_data = dict(train=dict(type="BCCD", split="train", size=_size, augment=_augment, views=0))
adapter = dict(type="DetectionAdapter")
metric = dict(type="DetectionMetric", primary="mAP")

student = _student(3, _size)
teacher = dict(
    type="TimmDetector",
    model="tf_efficientnet_lite0",
    pretrained_backbone=True,
    head="gfl",
    num_classes=3,
    input_size=(3, *_size),
    mean=0.5,
    std=0.5,
)
recipe = _recipe(24)
teacher_recipe = _recipe(30, 5e-4)
methods = _methods
