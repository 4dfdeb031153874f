"""`_base_/dtd10.py` with 4 labels a class."""

_base_ = ["./_base_/dtd10.py"]

pair = "joined-resnet8-4shot"
title = "Ten textures (48×48), pool of 612, 4 labels a class"
data = dict(train=dict(shots=4))
teacher_of = "multimodal/vlm/dtd10_1shot"
