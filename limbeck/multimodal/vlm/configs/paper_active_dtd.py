"""DTD, from one label a class to sixteen: CLIP ResNet-50 teaches a ResNet-18 (PCoreSet, arXiv 2506.00910)."""

from limbeck.multimodal.vlm.configs._base_.paper import rounds as _rounds

_base_ = ["./_base_/paper_active.py"]

benchmark = "dtd-active"
pair = "clip_rn50-resnet18"
title = "DTD: CLIP ResNet-50 → ResNet-18, 15 rounds"
data, teacher, student, methods = _rounds("DTD", "dtd", 47).values()
