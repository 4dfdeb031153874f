"""`_base_/paper_imagenet64.py`, progressive distillation from 1,024 steps to 1 (arXiv 2202.00512)."""

from limbeck.multimodal.diffusion.configs._base_.paper_imagenet64 import halved as _halved

_base_ = ["./_base_/paper_imagenet64.py"]

pair = "adm-pd-1step"
title = "ImageNet 64×64: ADM U-Net, 1024 steps → the same, 1 step"
student, recipe, methods = _halved(1)
