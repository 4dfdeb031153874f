"""CIFAR-10 as JPEG copy: one image a class is labelled, then ten more a round, chosen by each strategy."""

from limbeck.multimodal.vlm.configs._base_.cifar10 import student as _student
from limbeck.multimodal.vlm.configs._base_.parts import active as _active

_base_ = ["./_base_/cifar10.py"]

benchmark = "active-cifar10-jpeg"
pair = "joined-resnet8"
title = "CIFAR-10 (JPEG), from 10 labels to 70, pool of 10,000"
teacher_of = "multimodal/vlm/cifar10_1shot"
data = dict(train=dict(shots=1), steps=34)
adapter = dict(search=False)  # an active learner has no validation set
loop = dict(type="ActiveLearning", strategy=dict(type="Random"), rounds=6)
methods = dict(_delete_=True, **_active(_student))
