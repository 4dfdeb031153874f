"""Flowers102 with 16 labels a class: CLIP ResNet-50 teaches a ResNet-18 (DHO, arXiv 2505.07675)."""

from limbeck.multimodal.vlm.configs._base_.paper import few_shot as _few_shot

_base_ = ["./_base_/paper_few_shot.py"]

benchmark = "flowers102"
pair = "clip_rn50-resnet18"
title = "Flowers102: CLIP ResNet-50 → ResNet-18, 16 labels a class"
data, teacher, student, methods = _few_shot("Flowers102", "flowers102", 102).values()
