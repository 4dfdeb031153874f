"""COCO, paper tier: Faster R-CNN-R101 (published: 39.80) → Faster R-CNN-R50 (38.40 alone), 2x; ACAM-KD 41.40.

MasKD's figure is with a term on box regression that ours lacks. ACAM-KD's figure is as notes on the paper quote its
table.
"""

from limbeck.detection.configs._base_.paper_methods import coco_methods as _methods
from limbeck.detection.configs._base_.paper_models import faster_rcnn as _faster_rcnn

_base_ = ["./_base_/paper_coco.py"]

pair = "faster_rcnn_r101-faster_rcnn_r50"
title = "COCO: Faster R-CNN-R101 → Faster R-CNN-R50"
teacher = dict(config=_faster_rcnn(101))
student = dict(config=_faster_rcnn(50))
recipe = dict(optimizer=dict(lr=0.02))
methods = _methods("faster_rcnn")

reported = {"teacher": 39.8, "plain": 38.4, "PKD": 40.3, "MasKD": 41.0, "ACAM-KD": 41.4}
reported_source = (
    "arXiv 2205.14589 (teacher, plain, MasKD: read-me of its code); MMRazor's read-me (PKD; arXiv 2207.02039); "
    "arXiv 2503.06307 (ACAM-KD: as notes on the paper quote it)"
)
