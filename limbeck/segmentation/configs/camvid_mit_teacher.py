"""CamVid: how the transformers' teacher is made. DeepLabV3+ on EfficientNet-Lite 0 teaches a SegFormer-B0.

Trained alone from random weights, that SegFormer is above its student by less than the four points of mIoU that a
teacher is asked for; a network with ImageNet features teaches it first, as a teacher assistant is taught (arXiv
1902.03393).
"""

from limbeck.segmentation.configs._base_.camvid_parts import kd as _kd
from limbeck.segmentation.configs._base_.camvid_parts import lite0 as _teacher
from limbeck.segmentation.configs._base_.camvid_parts import mit32 as _student
from limbeck.segmentation.configs._base_.camvid_parts import recipe as _recipe

_base_ = ["./_base_/camvid.py"]

pair = "efficientnet_lite0-mit32"
title = "CamVid: EfficientNet-Lite 0 → SegFormer-B0, which then teaches"
teacher, student = _teacher, _student
teacher_of = "segmentation/camvid_cnn"
data = dict(train=dict(views=20))
recipe = _recipe(2e-3, epochs=40)
cache = dict(dtype="float16")
methods = dict(KD=dict(links=[_kd]))
