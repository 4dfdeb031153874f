"""Cityscapes, paper tier: SegFormer-B2 (published: 76.49) teaches B0 (55.86 alone) by TransKD; Base 68.58, EA 68.98.

TransKD's recipe (arXiv 2202.13393): AdamW at 6e-5 for 1,000 epochs of batch 2, falling linearly towards 0 at epoch
1,500, images of 1024×512 whole, flipped half of the time, a student without ImageNet weights. Differences: their code
has no mean and deviation, shifts images by up to 2 pixels, has a void class and class weights, and scores label maps of
a quarter of the size, which gives other figures than ours at 1024×512; the head learns at ten times the rate, as
SegFormer's does (our assumption). The published table has no figure for ReviewKD.
"""

from limbeck.segmentation.configs._base_.paper_models import segformer as _segformer

_base_ = ["./_base_/paper_cityscapes.py"]

pair = "segformer_b2-segformer_b0"
title = "Cityscapes: SegFormer-B2 → SegFormer-B0"
benchmark = "cityscapes-1024x512"

_scale = (1024, 512)
_whole = dict(crop=(512, 1024), ratio_range=(1.0, 1.0), cat_max_ratio=1.0, flip=0.5, distort=False)
data = dict(train=dict(scale=_scale, augment=_whole), val=dict(scale=_scale), test=dict(scale=_scale), batch_size=2)
teacher_data = dict(batch_size=8)
teacher = dict(config=_segformer("b2", channels=768), pretrained_backbone=False)
student = dict(config=_segformer("b0", channels=256), pretrained_backbone=False)

recipe = dict(
    epochs=1000,
    optimizer=dict(_delete_=True, type="AdamW", lr=6e-5, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01),
    param_scheduler=[dict(type="PolyLR", power=1.0, eta_min=0.0, end=1500, per_iteration=False)],
    paramwise=dict(custom_keys={"decode_head": dict(lr_mult=10.0)}),
)

_stages = [(f"backbone[{i}]", f"backbone[{i}]") for i in range(4)]
methods = {
    "TransKD-Base": dict(links=[dict(type="TransKD")]),
    "TransKD-GL": dict(links=[dict(type="TransKD", mixer=True)]),
    "TransKD-EA": dict(links=[dict(type="TransKD", assistant=True)]),
    "ReviewKD": dict(links=[dict(type="ReviewKD", taps=_stages, width=64, weight=1.0)]),
}

reported = {"teacher": 76.49, "plain": 55.86, "TransKD-Base": 68.58, "TransKD-GL": 68.87, "TransKD-EA": 68.98}
reported_source = "arXiv 2202.13393 (read-me of its code: teacher, plain, TransKD-Base, TransKD-GL, TransKD-EA)"
