"""`_base_/cifar10.py` with 1 label a class."""

_base_ = ["./_base_/cifar10.py"]

pair = "joined-resnet8-1shot"
title = "CIFAR-10 (JPEG), pool of 10,000, 1 label a class"
data = dict(train=dict(shots=1))
