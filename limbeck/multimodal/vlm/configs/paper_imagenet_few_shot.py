"""ImageNet with 16 labels a class: CLIP ResNet-50 teaches a DINO ResNet-50 (DHO, arXiv 2505.07675).

ASSUMPTION: timm has no DINO ResNet-50 by a name of its own: give its weights as student.backbone.model=hf-hub:…; the
supervised one stands in.
"""

from limbeck.multimodal.vlm.configs._base_.paper import ADAMW as _ADAMW
from limbeck.multimodal.vlm.configs._base_.paper import few_shot as _few_shot

_base_ = ["./_base_/paper_few_shot.py"]

benchmark = "imagenet-few-shot"
pair = "clip_rn50-resnet50"
title = "ImageNet: CLIP ResNet-50 → ResNet-50, 16 labels a class"
data, teacher, student, methods = _few_shot("ImageNet", "imagenet", 1000).values()
data = dict(data, batch_size=256, unlabelled_batch_size=256, steps=4900)
student["backbone"]["model"] = "resnet50"
methods["DHO"]["student"]["backbone"]["model"] = "resnet50"
recipe = dict(epochs=20, optimizer=_ADAMW, param_scheduler=[dict(type="CosineAnnealingLR")], val_interval=1)
