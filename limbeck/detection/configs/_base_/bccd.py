"""BCCD at 256×192 and what every pair on it shares: data, metric, student and recipes.

The student's rate was chosen on val among 1, 2, 4, 8 and 16 · 1e-3 for plain training of 16 epochs; those
runs were not kept.
"""

from limbeck.detection.configs._base_.bccd_parts import size as _size
from limbeck.detection.configs._base_.gfl_pair import recipe as _recipe
from limbeck.detection.configs._base_.gfl_pair import student as _student

task = "object-detection"
benchmark = "bccd"
benchmark_version = 1

_augment = dict(scale=(0.75, 1.5), flip=True)
data = dict(
    train=dict(type="BCCD", split="train", size=_size, augment=_augment, views=4),
    val=dict(type="BCCD", split="val", size=_size),
    test=dict(type="BCCD", split="test", size=_size),
    batch_size=8,
    eval_batch_size=16,
)
teacher_data = dict(train=dict(type="BCCD", split="train", size=_size, augment=_augment, views=0))
adapter = dict(type="DetectionAdapter")
metric = dict(type="DetectionMetric", primary="mAP")
student = _student(3, _size)
recipe = _recipe(10, 8e-3)
teacher_recipe = _recipe(30, 5e-4)
cache = dict(dtype="float16")
