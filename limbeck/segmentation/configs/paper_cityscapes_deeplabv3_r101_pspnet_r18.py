"""Cityscapes, paper tier: DeepLabV3-ResNet-101 (published: 78.07) → PSPNet-ResNet-18 (72.55 alone); CIRKD 74.73."""

from limbeck.segmentation.configs._base_.paper_methods import cnn_methods as _methods
from limbeck.segmentation.configs._base_.paper_models import deeplabv3_resnet as _deeplabv3
from limbeck.segmentation.configs._base_.paper_models import pspnet_resnet as _pspnet

_base_ = ["./_base_/paper_cityscapes.py"]

pair = "deeplabv3_r101-pspnet_r18"
title = "Cityscapes: DeepLabV3-ResNet-101 → PSPNet-ResNet-18"
teacher = dict(config=_deeplabv3(101, 256))
student = dict(config=_pspnet(18, 128))
methods = _methods(19, auxiliary=True)

reported = {"teacher": 78.07, "plain": 72.55, "CIRKD": 74.73, "DIST": 76.31, "MasKD": 75.34, "ACAM-KD": 75.99}
reported_source = (
    "arXiv 2204.06986 (teacher, plain, CIRKD: read-me of its code); arXiv 2205.10536 (DIST); arXiv 2205.14589 (MasKD); "
    "arXiv 2503.06307 (ACAM-KD: as notes on the paper quote it)"
)
