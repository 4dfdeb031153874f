"""Cityscapes, paper tier: DeepLabV3-ResNet-101 (published: 78.07) → DeepLabV3-MobileNetV2 (73.12); CIRKD 75.42."""

from limbeck.segmentation.configs._base_.paper_methods import cnn_methods as _methods
from limbeck.segmentation.configs._base_.paper_models import deeplabv3_mobilenetv2 as _mobilenet
from limbeck.segmentation.configs._base_.paper_models import deeplabv3_resnet as _deeplabv3

_base_ = ["./_base_/paper_cityscapes.py"]

pair = "deeplabv3_r101-deeplabv3_mobilenetv2"
title = "Cityscapes: DeepLabV3-ResNet-101 → DeepLabV3-MobileNetV2"
teacher = dict(config=_deeplabv3(101, 256))
student = dict(config=_mobilenet())
methods = _methods(19, auxiliary=False)

reported = {
    "teacher": 78.07,
    "plain": 73.12,
    "SKD": 73.82,
    "IFVD": 73.50,
    "CWD": 74.66,
    "CIRKD": 75.42,
    "MasKD": 75.26,
    "ACAM-KD": 76.21,
}
reported_source = (
    "arXiv 2204.06986 (teacher, plain, SKD, IFVD, CWD, CIRKD: read-me of its code); arXiv 2205.14589 (MasKD); "
    "arXiv 2503.06307 (ACAM-KD: as notes on the paper quote it)"
)
