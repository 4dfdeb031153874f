"""Caltech101, from one label a class to sixteen: CLIP ResNet-50 teaches a ResNet-18 (PCoreSet, arXiv 2506.00910)."""

from limbeck.multimodal.vlm.configs._base_.paper import rounds as _rounds

_base_ = ["./_base_/paper_active.py"]

benchmark = "caltech101-active"
pair = "clip_rn50-resnet18"
title = "Caltech101: CLIP ResNet-50 → ResNet-18, 15 rounds"
data, teacher, student, methods = _rounds("Caltech101", "caltech101", 100).values()
