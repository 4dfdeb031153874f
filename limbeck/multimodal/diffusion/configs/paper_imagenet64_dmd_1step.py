"""`_base_/paper_imagenet64.py`, distribution matching without a GAN (arXiv 2405.14867).

Settings of `imagenet_lr2e-6_scratch.sh` in the official code, of which this has the two losses, on EDM's teacher there:
seven batches of 40, a student's step for five of the second denoiser's, 410,000 updates, here 410 epochs of 1,000.
ASSUMPTION: the second denoiser has Adam, where the code has AdamW for both.
"""

from limbeck.multimodal.diffusion.configs._base_.paper_imagenet64 import requests as _requests

_base_ = ["./_base_/paper_imagenet64.py"]

pair = "adm-dmd-1step"
title = "ImageNet 64×64: ADM U-Net, 1024 steps → the same, 1 step"
teacher_of = "multimodal/diffusion/paper_imagenet64_pd_1step"
data = dict(batch_size=280)
recipe = dict(
    epochs=410,
    precision="bfloat16",
    optimizer=dict(type="AdamW", lr=2e-6, weight_decay=0.01),
    clip_grad=dict(max_norm=10.0),
)
methods = {
    "DMD": dict(
        task_weight=0.0,
        train=_requests(280_000),
        links=[dict(type="DMD", ratio=5, first=0.0, fake_lr=2e-6)],
    )
}
reported = {"DMD": 2.61}
reported_source = "DMD: imagenet_lr2e-6_scratch in the README of DMD2's ImageNet experiments (arXiv 2405.14867)"
