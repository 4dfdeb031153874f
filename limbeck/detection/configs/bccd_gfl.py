"""BCCD at 256×192: GFL on EfficientNet-Lite 0 with ImageNet weights teaches one on a ResNet-18 of a sixth's width.

The teacher's pyramid has no norms above features of ImageNet: its maps have a variance of about 100, where the papers'
weights are for maps of about 1.
"""

from limbeck.detection.configs._base_.bccd_parts import lite0 as _lite0
from limbeck.detection.configs._base_.gfl_pair import methods as _methods

_base_ = ["./_base_/bccd.py"]

pair = "efficientnet_lite0-resnet18_10"
title = "BCCD: GFL, EfficientNet-Lite 0 → ResNet-18 of width 10"
teacher = _lite0("gfl")
methods = _methods(variance=100.0)

# Factors chosen on val by a grid of which no record was kept; those that are not listed are 1.
for _name, _factor in dict(FitNet=0.1, FGD=0.01, MGD=0.1, CWD=0.01, PKD=0.1, LD=0.01).items():
    _link = methods[_name]["links"][0]
    _link["weight"] = _factor * _link.get("weight", 1.0)
