"""ImageNet with 1 % of its labels: DFN ViT-H/14 teaches CLIP's ViT-L-14-336 (DHO, arXiv 2505.07675)."""

from limbeck.multimodal.vlm.configs._base_.paper_imagenet import semi as _semi
from limbeck.multimodal.vlm.configs._base_.paper_imagenet import tower as _tower

_base_ = ["./_base_/paper_imagenet.py"]

benchmark = "imagenet-1pct"
pair = "dfn_vit_h14-clip_vitl14"
title = "ImageNet, 1 % of the labels: DFN ViT-H/14 → CLIP ViT-L-14-336"
data = dict(train=dict(shots=13))
student = _tower("ViT-L-14-336")
methods = _semi(student)
reported = dict(DHO=84.6)
reported_source = "README of the official code, github.com/erjui/DHO"
