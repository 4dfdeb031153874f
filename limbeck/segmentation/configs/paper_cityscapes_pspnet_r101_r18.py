"""Cityscapes, paper tier: PSPNet-ResNet-101 (published: 79.76) → PSPNet-ResNet-18 (74.87 alone); CWD on logits 75.54.

MMRazor's run of CWD (arXiv 2011.13256) with mmsegmentation's recipe: 80,000 steps of 8 crops at a rate of 0.01, weight
decay 5e-4, down to 1e-4, colours distorted. The other methods have CIRKD's weights and no figure for this pair.
"""

from limbeck.segmentation.configs._base_.paper_methods import cnn_methods as _methods
from limbeck.segmentation.configs._base_.paper_models import pspnet_resnet as _pspnet

_base_ = ["./_base_/paper_cityscapes.py"]

pair = "pspnet_r101-pspnet_r18"
title = "Cityscapes: PSPNet-ResNet-101 → PSPNet-ResNet-18"
data = dict(train=dict(augment=dict(cat_max_ratio=0.75, distort=True)), batch_size=8)
teacher = dict(config=_pspnet(101, 512))
student = dict(config=_pspnet(18, 128))

recipe = dict(
    epochs=236,  # 80,000 steps: 2,725 images are 340 batches
    optimizer=dict(lr=0.01, weight_decay=5e-4),
    param_scheduler=[dict(type="PolyLR", power=0.9, eta_min=1e-4)],
)

methods = _methods(19, auxiliary=True)
methods["CWD"] = dict(links=[dict(type="CWD", taps=[("logits", "logits")], temperature=1.0, weight=5.0)])

reported = {"teacher": 79.76, "plain": 74.87, "CWD": 75.54}
reported_source = "MMRazor's read-me of CWD (teacher, plain, CWD; arXiv 2011.13256)"
