"""`_base_/digits.py` with 4 labels a class."""

_base_ = ["./_base_/digits.py"]

pair = "clip_noisy-cnn-4shot"
title = "Handwritten digits (8×8), noisy teacher, 4 labels a class"
data = dict(train=dict(shots=4))
teacher_of = "multimodal/vlm/digits_1shot"
