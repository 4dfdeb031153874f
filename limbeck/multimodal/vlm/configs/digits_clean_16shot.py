"""`_base_/digits.py` with 16 labels a class, taught by a CLIP of right captions."""

_base_ = ["./_base_/digits.py"]

pair = "clip_clean-cnn-16shot"
title = "Handwritten digits (8×8), clean teacher, 16 labels a class"
data = dict(train=dict(shots=16))
teacher = dict(caption_noise=0.0)
teacher_of = "multimodal/vlm/digits_clean_1shot"
