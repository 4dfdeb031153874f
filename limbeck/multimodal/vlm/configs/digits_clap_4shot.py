"""`_base_/digits.py` with 4 labels a class, to which the teacher is fitted too, as CLAP (arXiv 2312.12730)."""

from limbeck.multimodal.vlm.configs._base_.digits import teacher as _zero_shot
from limbeck.multimodal.vlm.configs._base_.parts import few_shot as _few_shot

_base_ = ["./_base_/digits.py"]

pair = "clap_noisy-cnn-4shot"
title = "Handwritten digits (8×8), noisy teacher fitted as CLAP, 4 labels a class"
data = dict(train=dict(shots=4))
teacher = dict(_delete_=True, **_few_shot(_zero_shot, "CLAP", support=40))
teacher_seeds = "run"
