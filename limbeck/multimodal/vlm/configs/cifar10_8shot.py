"""`_base_/cifar10.py` with 8 labels a class."""

_base_ = ["./_base_/cifar10.py"]

pair = "joined-resnet8-8shot"
title = "CIFAR-10 (JPEG), pool of 10,000, 8 labels a class"
data = dict(train=dict(shots=8))
teacher_of = "multimodal/vlm/cifar10_1shot"
