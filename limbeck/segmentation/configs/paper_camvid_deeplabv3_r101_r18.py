"""CamVid, paper tier: DeepLabV3-ResNet-101 (published: 69.84) → DeepLabV3-ResNet-18 (66.92 alone); CIRKD 68.21."""

from limbeck.segmentation.configs._base_.paper_methods import cnn_methods as _methods
from limbeck.segmentation.configs._base_.paper_models import deeplabv3_resnet as _deeplabv3

_base_ = ["./_base_/paper_camvid.py"]

pair = "deeplabv3_r101-deeplabv3_r18"
title = "CamVid: DeepLabV3-ResNet-101 → DeepLabV3-ResNet-18"
teacher = dict(config=_deeplabv3(101, 256))
student = dict(config=_deeplabv3(18, 128))
methods = _methods(11, auxiliary=True)

reported = {"teacher": 69.84, "plain": 66.92, "CIRKD": 68.21}
reported_source = "arXiv 2204.06986 (teacher, plain, CIRKD: read-me of its code)"
