"""ImageNet with 10 % of its labels: DFN ViT-H/14 teaches CLIP's ViT-B-16 (DHO, arXiv 2505.07675)."""

from limbeck.multimodal.vlm.configs._base_.paper_imagenet import semi as _semi
from limbeck.multimodal.vlm.configs._base_.paper_imagenet import tower as _tower

_base_ = ["./_base_/paper_imagenet.py"]

benchmark = "imagenet-10pct"
pair = "dfn_vit_h14-clip_vitb16"
title = "ImageNet, 10 % of the labels: DFN ViT-H/14 → CLIP ViT-B-16"
data = dict(train=dict(shots=128))
student = _tower("ViT-B-16")
methods = _semi(student)
reported = dict(DHO=82.8)
reported_source = "README of the official code, github.com/erjui/DHO"
