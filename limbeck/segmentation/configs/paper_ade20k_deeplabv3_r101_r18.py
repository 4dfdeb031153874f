"""ADE20K, paper tier: DeepLabV3-ResNet-101 (published: 42.70) → DeepLabV3-ResNet-18 (33.91 alone); CIRKD 35.41."""

from limbeck.segmentation.configs._base_.paper_methods import cnn_methods as _methods
from limbeck.segmentation.configs._base_.paper_models import deeplabv3_resnet as _deeplabv3

_base_ = ["./_base_/paper_ade20k.py"]

pair = "deeplabv3_r101-deeplabv3_r18"
title = "ADE20K: DeepLabV3-ResNet-101 → DeepLabV3-ResNet-18"
teacher = dict(config=_deeplabv3(101, 256))
student = dict(config=_deeplabv3(18, 128))
methods = _methods(150, auxiliary=True)
del methods["MasKD"]  # its tokens are learned on whole images, which must be of one size

reported = {"teacher": 42.70, "plain": 33.91, "CIRKD": 35.41}
reported_source = "arXiv 2204.06986 (teacher, plain, CIRKD: read-me of its code)"
