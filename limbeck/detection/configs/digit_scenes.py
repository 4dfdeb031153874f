"""Digit scenes, 96×96: real handwritten digits over textured backgrounds, with exact boxes; nothing to download.

Not measured yet: sizes, recipe and weights are a first guess.
"""

from limbeck.detection.configs._base_.gfl_pair import methods as _methods
from limbeck.detection.configs._base_.gfl_pair import recipe as _recipe
from limbeck.detection.configs._base_.gfl_pair import student as _student

task = "object-detection"
benchmark = "digit-scenes-boxes"
benchmark_version = 1
pair = "resnet18_32-resnet18_10"
title = "Digit scenes (96×96), boxes"

_size = (96, 96)
data = dict(
    train=dict(type="DigitScenesBoxes", split="train", size=_size),
    val=dict(type="DigitScenesBoxes", split="val", count=100, size=_size),
    test=dict(type="DigitScenesBoxes", split="test", count=300, size=_size),
    batch_size=16,
    eval_batch_size=50,
)
adapter = dict(type="DetectionAdapter")
metric = dict(type="DetectionMetric", primary="mAP")

student = _student(10, _size)
teacher = {**_student(10, _size), "base_channels": 32, "channels": 64}
recipe = _recipe(10)
methods = _methods()
