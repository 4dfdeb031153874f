"""`_base_/dtd10.py` with 1 label a class."""

_base_ = ["./_base_/dtd10.py"]

pair = "joined-mobilenetv3-1shot"
title = "Ten textures (64×64), pool of 612, 1 label a class"
data = dict(train=dict(shots=1))
