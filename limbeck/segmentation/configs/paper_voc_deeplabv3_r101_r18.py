"""PASCAL VOC 2012, paper tier: DeepLabV3-ResNet-101 (published: 77.67) → DeepLabV3-ResNet-18 (73.21); CIRKD 74.50."""

from limbeck.segmentation.configs._base_.paper_methods import cnn_methods as _methods
from limbeck.segmentation.configs._base_.paper_models import deeplabv3_resnet as _deeplabv3

_base_ = ["./_base_/paper_voc.py"]

pair = "deeplabv3_r101-deeplabv3_r18"
title = "PASCAL VOC 2012: DeepLabV3-ResNet-101 → DeepLabV3-ResNet-18"
teacher = dict(config=_deeplabv3(101, 256))
student = dict(config=_deeplabv3(18, 128))
methods = _methods(21, auxiliary=True, memory=0.01)
del methods["MasKD"]  # its tokens are learned on whole images, which must be of one size

reported = {"teacher": 77.67, "plain": 73.21, "CIRKD": 74.50}
reported_source = "arXiv 2204.06986 (teacher, plain, CIRKD: read-me of its code)"
