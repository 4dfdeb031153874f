"""`_base_/digits.py` with 1 label a class, taught by a CLIP of right captions."""

_base_ = ["./_base_/digits.py"]

pair = "clip_clean-cnn-1shot"
title = "Handwritten digits (8×8), clean teacher, 1 label a class"
data = dict(train=dict(shots=1))
teacher = dict(caption_noise=0.0)
