"""Handwritten digits, 8×8: four images a class are labelled, and the others teach through the teacher's logits."""

_base_ = ["./_base_/digits.py"]

benchmark = "digits-4shot"
pair = "resnet20-cnn"
title = "Handwritten digits (8×8), 4 labels a class"
data = dict(train=dict(shots=4))
