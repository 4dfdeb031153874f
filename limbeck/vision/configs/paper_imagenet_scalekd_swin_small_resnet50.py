"""ImageNet, paper tier: Swin-S teaches ResNet-50 by ScaleKD with the 100-epoch recipe (arXiv 2411.06786).

The authors' config leaves out KD and, for the last stage, the frequency term. The figure of this pair was not read at
its source, so none is printed.
"""

_base_ = ["./_base_/imagenet.py"]

pair = "swin_small-resnet50"
title = "ImageNet: Swin-S → ResNet-50"
teacher = dict(model="swin_small_patch4_window7_224.ms_in1k")
student = dict(model="resnet50")

_scale = dict(
    type="ScaleKD",
    taps=[("norm", "layer3"), ("norm", "layer4")],
    teacher_layout="nhwc",
    heads=(3, 6),
    alphas=((0.08, 0.06), (0.08, 0.0)),
)
methods = dict(
    KD=dict(task_weight=0.5, links=[dict(type="KD", weight=0.5, temperature=1.0)]),
    ScaleKD=dict(links=[_scale]),
)
