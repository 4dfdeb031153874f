"""`_base_/cifar10.py` with 4 labels a class and 500 images instead of 10,000: what a large pool is worth."""

_base_ = ["./_base_/cifar10.py"]

pair = "joined-resnet8-pool500-4shot"
title = "CIFAR-10 (JPEG), pool of 500, 4 labels a class"
data = dict(train=dict(of=dict(limit=500), shots=4))
teacher_of = "multimodal/vlm/cifar10_1shot"
