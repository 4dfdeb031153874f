"""COCO, paper tier: RepPoints-R101 (published: 40.50) → RepPoints-R50 (38.60 alone), 2x; ACAM-KD 42.50.

Other papers teach this student by an X101 with deformable convolutions, so they have no figure here. ACAM-KD's is as
notes on the paper quote its table. Deformable convolution runs without mmcv's compiled operators too.
"""

from limbeck.detection.configs._base_.paper_methods import coco_methods as _methods
from limbeck.detection.configs._base_.paper_models import reppoints as _reppoints

_base_ = ["./_base_/paper_coco.py"]

pair = "reppoints_r101-reppoints_r50"
title = "COCO: RepPoints-R101 → RepPoints-R50"
teacher = dict(config=_reppoints(101))
student = dict(config=_reppoints(50))
methods = _methods("reppoints")

reported = {"teacher": 40.5, "plain": 38.6, "ACAM-KD": 42.5}
reported_source = (
    "arXiv 2111.11837 (teacher, plain: read-me of its code); arXiv 2503.06307 (ACAM-KD: as notes on the paper quote it)"
)
