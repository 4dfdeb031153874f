"""`_base_/digits.py` with 8 labels a class."""

_base_ = ["./_base_/digits.py"]

pair = "clip_noisy-cnn-8shot"
title = "Handwritten digits (8×8), noisy teacher, 8 labels a class"
data = dict(train=dict(shots=8))
teacher_of = "multimodal/vlm/digits_1shot"
