"""CamVid: DeepLabV3+ on EfficientNet-Lite 0 with ImageNet weights teaches a MobileNetV2 ×0.35 from random weights.

Both have logits and the map before the classifier at a quarter of the image's size, so nothing is resized. Weights are
the authors', as the code of CIRKD has them.
"""

from limbeck.segmentation.configs._base_.camvid_parts import cwd as _cwd
from limbeck.segmentation.configs._base_.camvid_parts import kd as _kd
from limbeck.segmentation.configs._base_.camvid_parts import lite0 as _teacher
from limbeck.segmentation.configs._base_.camvid_parts import logits as _logits
from limbeck.segmentation.configs._base_.camvid_parts import mobilenet as _student
from limbeck.segmentation.configs._base_.camvid_parts import recipe as _recipe

_base_ = ["./_base_/camvid.py"]

pair = "efficientnet_lite0-mobilenetv2"
title = "CamVid: EfficientNet-Lite 0 → MobileNetV2 ×0.35"
teacher, student = _teacher, _student
recipe = _recipe(4e-3)
teacher_recipe = _recipe(5e-4, epochs=40, paramwise=dict(custom_keys=dict(decode_head=dict(lr_mult=5.0))))
cache = dict(dtype="float16")

_feature = [("decode_head.sep_bottleneck", "decode_head.fusion_conv")]
methods = dict(
    KD=dict(links=[_kd]),
    SKD=dict(links=[_kd, dict(type="SKD", taps=_feature)]),
    IFVD=dict(links=[_kd, dict(type="IFVD", taps=_feature, weight=20.0)]),
    CWD=dict(links=_cwd(*_feature[0])),
    CIRKD=dict(links=[_kd, dict(type="CIRKD", taps=_feature, classes=11, pixel_queue=2000)]),
    MasKD=dict(links=[dict(type="MasKD", taps=_logits, stage1_iterations=300)]),
    DIST=dict(links=[dict(type="DIST", taps=_logits, weight=1.0, temperature=1.0)]),
)
methods["ACAM-KD"] = dict(links=[dict(type="ACAMKD", form="segmentation", taps=_logits)])
