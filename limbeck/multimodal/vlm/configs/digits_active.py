"""Handwritten digits, 8×8: one of each class is labelled, then ten more a round, chosen by each strategy."""

from limbeck.multimodal.vlm.configs._base_.digits import student as _student
from limbeck.multimodal.vlm.configs._base_.parts import active as _active

_base_ = ["./_base_/digits.py"]

benchmark = "active-digits"
pair = "clip_noisy-cnn"
title = "Handwritten digits (8×8), from 10 labels to 40"
teacher_of = "multimodal/vlm/digits_1shot"
data = dict(train=dict(shots=1))
adapter = dict(search=False)  # an active learner has no validation set
loop = dict(type="ActiveLearning", strategy=dict(type="Random"), rounds=3)
methods = dict(_delete_=True, **_active(_student))
