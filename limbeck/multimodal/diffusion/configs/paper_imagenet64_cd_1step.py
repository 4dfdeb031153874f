"""`_base_/paper_imagenet64.py`, consistency distillation (arXiv 2303.01469) with the squared distance.

Settings of `scripts/launch.sh` in the official code, where it is EDM's exploding schedule and a teacher of its own; the
600,000 updates are 998 epochs of 601. The paper's best figure is with LPIPS, which is not here.
"""

from limbeck.multimodal.diffusion.configs._base_.paper_imagenet64 import student as _student

_base_ = ["./_base_/paper_imagenet64.py"]

pair = "adm-cd-1step"
title = "ImageNet 64×64: ADM U-Net, 1024 steps → the same, 1 step"
teacher_of = "multimodal/diffusion/paper_imagenet64_pd_1step"
recipe = dict(epochs=998, precision="float16", optimizer=dict(type="RAdam", lr=8e-6, weight_decay=0.0))
methods = {
    "CD": dict(
        task_weight=0.0,
        student=dict(_student, sampler=dict(kind="consistency", steps=1)),
        links=[
            dict(
                type="ConsistencyDistillation",
                teacher=["teacher", "target"],
                taps=[("x0", "x0")],
                target="target",
                intervals=40,
                distance="l2",
                heun=True,
            )
        ],
        members=dict(target=dict(type="ema", of="student", momentum=0.95)),
    )
}
