"""`_base_/cifar10.py` with 16 labels a class."""

_base_ = ["./_base_/cifar10.py"]

pair = "joined-resnet8-16shot"
title = "CIFAR-10 (JPEG), pool of 10,000, 16 labels a class"
data = dict(train=dict(shots=16))
teacher_of = "multimodal/vlm/cifar10_1shot"
