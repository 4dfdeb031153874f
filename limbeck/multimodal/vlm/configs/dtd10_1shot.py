"""`_base_/dtd10.py` with 1 label a class."""

_base_ = ["./_base_/dtd10.py"]

pair = "joined-resnet8-1shot"
title = "Ten textures (48×48), pool of 612, 1 label a class"
data = dict(train=dict(shots=1))
