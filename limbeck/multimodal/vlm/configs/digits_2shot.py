"""`_base_/digits.py` with 2 labels a class."""

_base_ = ["./_base_/digits.py"]

pair = "clip_noisy-cnn-2shot"
title = "Handwritten digits (8×8), noisy teacher, 2 labels a class"
data = dict(train=dict(shots=2))
teacher_of = "multimodal/vlm/digits_1shot"
