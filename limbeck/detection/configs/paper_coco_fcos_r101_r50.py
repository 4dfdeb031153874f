"""COCO, paper tier: FCOS-R101 (published: 40.80) → FCOS-R50 (38.50 alone), 2x at two scales; MasKD 42.90.

The code bases start from Caffe's backbones, in BGR and without a deviation, where ours are torchvision's. FGD's student
has a stronger head than its teacher and the plain student (boxes by stride, centre sampling, GIoU), ours the same one;
so its figure is not of FGD alone.
"""

from limbeck.detection.configs._base_.paper_coco import sgd as _sgd
from limbeck.detection.configs._base_.paper_methods import coco_methods as _methods
from limbeck.detection.configs._base_.paper_models import fcos as _fcos

_base_ = ["./_base_/paper_coco.py"]

pair = "fcos_r101-fcos_r50"
title = "COCO: FCOS-R101 → FCOS-R50"
data = dict(train=dict(augment=dict(scales=[(1333, 640), (1333, 800)])))
teacher = dict(config=_fcos(101))
student = dict(config=_fcos(50))
# Biases of convolutions learn twice as fast and do not decay; those of norms are as other weights.
_biases = {".bias": dict(lr_mult=2.0, decay_mult=0.0), ".gn.bias": dict(lr_mult=1.0), "backbone.": dict(lr_mult=1.0)}
recipe = dict(**_sgd(24, 0.01, warm_up="ConstantLR", start=1.0 / 3), paramwise=dict(custom_keys=_biases), _delete_=True)
methods = _methods("fcos")

reported = {"teacher": 40.8, "plain": 38.5, "FGD": 42.7, "MasKD": 42.9, "CrossKD": 41.1, "CrossKD+PKD": 41.3}
reported_source = (
    "arXiv 2306.11369 (teacher, plain, CrossKD, CrossKD+PKD: read-me of its code); arXiv 2111.11837 (FGD: read-me of "
    "its code); arXiv 2205.14589 (MasKD: read-me of its code)"
)
