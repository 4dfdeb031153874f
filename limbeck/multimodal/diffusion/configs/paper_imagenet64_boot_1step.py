"""`_base_/paper_imagenet64.py`, BOOT, without an image (arXiv 2306.05544).

ASSUMPTION: no code is public, and the settings are the specification's from memory of the paper: times from 1 to 99 %
of the schedule, steps of 4 %, the boundary at half weight, Adam at 2e-5, batches of 512, 500,000 updates, here 500
epochs of 1,000. No figure is given for them.
"""

from limbeck.multimodal.diffusion.configs._base_.paper_imagenet64 import requests as _requests
from limbeck.multimodal.diffusion.configs._base_.paper_imagenet64 import student as _student

_base_ = ["./_base_/paper_imagenet64.py"]

pair = "adm-boot-1step"
title = "ImageNet 64×64: ADM U-Net, 1024 steps → the same, 1 step"
teacher_of = "multimodal/diffusion/paper_imagenet64_pd_1step"
data = dict(batch_size=512)
recipe = dict(epochs=500, optimizer=dict(type="Adam", lr=2e-5))
methods = {
    "BOOT": dict(
        task_weight=0.0,
        train=_requests(512_000),
        student=dict(_student, boot_t_min=51),
        links=[
            dict(
                type="BOOT",
                step=205,
                t_max=5069,
                boundary=0.5,
                boundary_share=1.0,
                step_weight="inv_sq",
                heun=False,
            )
        ],
    )
}
