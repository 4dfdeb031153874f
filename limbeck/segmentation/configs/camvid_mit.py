"""CamVid: SegFormer-B0 with a head of 128 channels teaches one of half its width, from random weights.

The teacher is the student by KD of `segmentation/camvid_mit_teacher`. Weights are TransKD's and those of the code of
CIRKD. TransKD's fusion is as wide as the student's first stage; the paper's 64 channels are for networks of two to four
times the width, and cost more. CWD is on the logits, CWD-feature on the map before the classifier too.
"""

from limbeck.segmentation.configs._base_.camvid_parts import cwd as _cwd
from limbeck.segmentation.configs._base_.camvid_parts import cwd_logits as _cwd_logits
from limbeck.segmentation.configs._base_.camvid_parts import kd as _kd
from limbeck.segmentation.configs._base_.camvid_parts import mit16 as _student
from limbeck.segmentation.configs._base_.camvid_parts import mit32 as _teacher
from limbeck.segmentation.configs._base_.camvid_parts import recipe as _recipe
from limbeck.segmentation.configs._base_.camvid_parts import stages as _stages

_base_ = ["./_base_/camvid.py"]

pair = "mit32-mit16"
title = "CamVid: SegFormer-B0 → half its width, a layer a stage"
teacher, student = _teacher, _student
teacher_of = "segmentation/camvid_mit_teacher:KD"
recipe = _recipe(4e-3)
cache = dict(dtype="float16")

_transkd = dict(type="TransKD", width=16)
methods = {
    "KD": dict(links=[_kd]),
    "CWD": dict(links=[_kd, _cwd_logits]),
    "CWD-feature": dict(links=_cwd("decode_head.fusion_conv", "decode_head.fusion_conv")),
    "ReviewKD": dict(links=[dict(type="ReviewKD", taps=_stages, width=64, weight=1.0)]),
    "TransKD-Base": dict(links=[_transkd]),
    "TransKD-GL": dict(links=[dict(_transkd, mixer=True)]),
    "TransKD-EA": dict(links=[dict(_transkd, assistant=True)]),
}
