"""`digits_active.py` with a teacher that CLAP (arXiv 2312.12730) fits anew to the labels of every round."""

from limbeck.multimodal.vlm.configs._base_.digits import teacher as _zero_shot
from limbeck.multimodal.vlm.configs._base_.parts import few_shot as _few_shot

_base_ = ["./digits_active.py"]

pair = "clap_noisy-cnn"
title = "Handwritten digits (8×8), noisy teacher refitted by CLAP, from 10 labels to 40"
teacher = dict(_delete_=True, **_few_shot(_zero_shot, "CLAP", support=10))
teacher_of = None
teacher_seeds = "run"
loop = dict(refit=True)
