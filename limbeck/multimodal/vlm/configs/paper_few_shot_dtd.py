"""DTD with 16 labels a class: CLIP ResNet-50 teaches a ResNet-18 (DHO, arXiv 2505.07675)."""

from limbeck.multimodal.vlm.configs._base_.paper import few_shot as _few_shot

_base_ = ["./_base_/paper_few_shot.py"]

benchmark = "dtd"
pair = "clip_rn50-resnet18"
title = "DTD: CLIP ResNet-50 → ResNet-18, 16 labels a class"
data, teacher, student, methods = _few_shot("DTD", "dtd", 47).values()
