"""Handwritten digits, 8×8: 1 of each class is labelled, and the others teach through the teacher's logits."""

_base_ = ["./_base_/digits.py"]

benchmark = "digits-1shot"
pair = "tiny_clip-cnn"
title = "Handwritten digits (8×8), 1 label a class"
data = dict(train=dict(shots=1))
teacher_of = "multimodal/vlm/digits_4shot"
