"""CamVid without a teacher: MobileNetV2 ×0.35 and a SegFormer of width 16 learn from each other; the latter's records.

`KD` is one-way: the CNN, trained alone, teaches. The exchanges are the runs of `segmentation/camvid_online_cnn`.
"""

from limbeck.segmentation.configs._base_.camvid_online import names as _exchanges
from limbeck.segmentation.configs._base_.camvid_parts import kd as _kd
from limbeck.segmentation.configs._base_.camvid_parts import mit16 as _vit
from limbeck.segmentation.configs._base_.camvid_parts import mobilenet as _cnn
from limbeck.segmentation.configs._base_.camvid_parts import recipe as _recipe

_base_ = ["./_base_/camvid.py"]

pair = "mobilenetv2-mit16"
title = "CamVid: MobileNetV2 ×0.35 ⇄ SegFormer, the transformer"
teacher, student = _cnn, _vit
teacher_of = "segmentation/camvid_online_cnn:plain"
recipe = _recipe(4e-3)
_elsewhere = dict(same_run_as="segmentation/camvid_online_cnn")
methods = dict(KD=dict(links=[_kd]), **dict.fromkeys(_exchanges, _elsewhere))
