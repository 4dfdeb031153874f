"""COCO, paper tier: RetinaNet-R101 (published: 38.90) → RetinaNet-R50 (37.40 alone), 2x; ACAM-KD 41.20.

MasKD's own run has twice the rate and 1,000 steps of warm-up; CrossKD's student makes P6 of P5, where ours, as its
teacher, makes it of the backbone's last map. ACAM-KD's figure is as notes on the paper quote its table.
"""

from limbeck.detection.configs._base_.paper_methods import coco_methods as _methods
from limbeck.detection.configs._base_.paper_models import retinanet as _retinanet

_base_ = ["./_base_/paper_coco.py"]

pair = "retinanet_r101-retinanet_r50"
title = "COCO: RetinaNet-R101 → RetinaNet-R50"
teacher = dict(config=_retinanet(101))
student = dict(config=_retinanet(50))
methods = _methods("retinanet")

reported = {
    "teacher": 38.9,
    "plain": 37.4,
    "MasKD": 39.9,
    "ACAM-KD": 41.2,
    "CrossKD": 39.7,
    "CrossKD+PKD": 39.8,
}
reported_source = (
    "arXiv 2306.11369 (teacher, plain, CrossKD, CrossKD+PKD: read-me of its code); arXiv 2205.14589 (MasKD: read-me of "
    "its code); arXiv 2503.06307 (ACAM-KD: as notes on the paper quote it)"
)
