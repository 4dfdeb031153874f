"""ImageNet, eight rounds of 1,000 images: CLIP ResNet-50 teaches a ResNet-50 (PCoreSet, arXiv 2506.00910).

The pool is 100,000 images, drawn once. ASSUMPTION: as in `paper_imagenet_few_shot`, of the student's weights.
"""

from limbeck.multimodal.vlm.configs._base_.paper import ADAMW as _ADAMW
from limbeck.multimodal.vlm.configs._base_.paper import rounds as _rounds

_base_ = ["./_base_/paper_active.py"]

benchmark = "imagenet-active"
pair = "clip_rn50-resnet50"
title = "ImageNet: CLIP ResNet-50 → ResNet-50, 8 rounds"
data, teacher, student, methods = _rounds("ImageNet", "imagenet", 1000).values()
data = dict(data, train=dict(data["train"], pool=100000), batch_size=256, unlabelled_batch_size=256, steps=390)
for _config in (student, *(m["student"] for m in methods.values() if "student" in m)):
    _config["backbone"]["model"] = "resnet50"
    _config.update(alpha=0.4, beta=0.5)
recipe = dict(epochs=20, optimizer=_ADAMW, param_scheduler=[dict(type="CosineAnnealingLR")])
loop = dict(rounds=8, passes=0)
