"""`_base_/digits.py` with 1 label a class."""

_base_ = ["./_base_/digits.py"]

pair = "clip_noisy-cnn-1shot"
title = "Handwritten digits (8×8), noisy teacher, 1 label a class"
data = dict(train=dict(shots=1))
