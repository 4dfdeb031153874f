"""Handwritten digits, 8×8: 4 of each class are labelled, and the others teach through the teacher's logits."""

_base_ = ["./_base_/digits.py"]

benchmark = "digits-4shot"
pair = "tiny_clip-cnn"
title = "Handwritten digits (8×8), 4 labels a class"
data = dict(train=dict(shots=4))
