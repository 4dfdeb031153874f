"""CamVid without a teacher: MobileNetV2 ×0.35 and a SegFormer of width 16 learn from each other; the CNN's records.

`KD` is one-way: the transformer, trained alone, teaches. The exchanges train both, and the transformer's records come
from the same runs, under `segmentation/camvid_online_vit`.
"""

from limbeck.segmentation.configs._base_.camvid_online import exchanges as _exchanges
from limbeck.segmentation.configs._base_.camvid_parts import kd as _kd
from limbeck.segmentation.configs._base_.camvid_parts import mit16 as _vit
from limbeck.segmentation.configs._base_.camvid_parts import mobilenet as _cnn
from limbeck.segmentation.configs._base_.camvid_parts import recipe as _recipe

_base_ = ["./_base_/camvid.py"]

pair = "mit16-mobilenetv2"
title = "CamVid: SegFormer ⇄ MobileNetV2 ×0.35, the CNN"
teacher, student = _vit, _cnn
teacher_of = "segmentation/camvid_online_vit:plain"
recipe = _recipe(4e-3)
methods = dict(KD=dict(links=[_kd]), **_exchanges("mobilenetv2-mit16"))
