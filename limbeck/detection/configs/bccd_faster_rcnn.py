"""BCCD at 256×192: a two-stage teacher, Faster R-CNN on EfficientNet-Lite 0, for the one-stage student of `bccd_gfl`.

Only what looks at pyramids alone can be taught across heads. Weights are those of `bccd_gfl`.
"""

from limbeck.detection.configs._base_.bccd_parts import lite0 as _lite0
from limbeck.detection.configs._base_.gfl_pair import recipe as _recipe
from limbeck.detection.configs.bccd_gfl import methods as _of_gfl

_base_ = ["./_base_/bccd.py"]

pair = "faster_rcnn_lite0-gfl_resnet18_10"
title = "BCCD: Faster R-CNN, EfficientNet-Lite 0 → GFL, ResNet-18 of width 10"
teacher = _lite0("faster_rcnn")
teacher_recipe = _recipe(20, 5e-4)
methods = {name: _of_gfl[name] for name in ("FitNet", "CWD", "PKD", "ACAM-KD")}
