"""COCO, paper tier: GFL-R101 of 2x at many scales (published: 44.90) → GFL-R50 of 1x (40.20 alone); CrossKD 43.70.

LD's figure, of its terms on boxes in both regions and on classes, and FitNet's, of a weight that we do not know, are
from LD's table, with a teacher of 44.6 and a plain student of 40.1. LD's sums are of two or three images a device
there; with more, its weights want `normalise=True`. CWD's is on class logits with a teacher of 44.7. The teacher's
scales are drawn from eleven; the code bases' are any between 480 and 800.
"""

from limbeck.detection.configs._base_.paper_coco import sgd as _sgd
from limbeck.detection.configs._base_.paper_methods import coco_methods as _methods
from limbeck.detection.configs._base_.paper_models import gfl as _gfl

_base_ = ["./_base_/paper_coco.py"]

pair = "gfl_r101-gfl_r50"
title = "COCO: GFL-R101 → GFL-R50"
teacher = dict(config=_gfl(101))
student = dict(config=_gfl(50))
recipe = dict(_delete_=True, **_sgd(12, 0.01))
teacher_recipe = _sgd(24, 0.01)
_scales = [(1333, side) for side in range(480, 801, 32)]
teacher_data = dict(train=dict(type="COCO2017", split="train", augment=dict(scales=_scales, flip=0.5), views=0))
methods = _methods("gfl")

reported = {
    "teacher": 44.9,
    "plain": 40.2,
    "FitNet": 40.7,
    "CWD": 41.9,
    "FGD": 43.5,
    "LD": 42.1,
    "CrossKD": 43.7,
    "CrossKD+PKD": 43.9,
}
reported_source = (
    "arXiv 2306.11369 (teacher, plain, CrossKD, CrossKD+PKD: read-me of its code); arXiv 2102.12252 (FitNet, LD: "
    "read-me of its code); MMRazor's read-me (CWD; arXiv 2011.13256); arXiv 2111.11837 (FGD: read-me of its code)"
)
