"""`_base_/digits.py` with 4 labels a class, to which the teacher is fitted too, as Tip-Adapter-F (arXiv 2207.09519)."""

from limbeck.multimodal.vlm.configs._base_.digits import teacher as _zero_shot
from limbeck.multimodal.vlm.configs._base_.parts import few_shot as _few_shot

_base_ = ["./_base_/digits.py"]

pair = "tip_adapter_noisy-cnn-4shot"
title = "Handwritten digits (8×8), noisy teacher fitted as Tip-Adapter-F, 4 labels a class"
data = dict(train=dict(shots=4))
teacher = dict(_delete_=True, **_few_shot(_zero_shot, "TipAdapterF", support=40))
teacher_seeds = "run"
