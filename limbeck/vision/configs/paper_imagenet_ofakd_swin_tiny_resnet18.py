"""ImageNet, paper tier: Swin-T → ResNet-18, a pair of OFA-KD's table (arXiv 2310.19444), beside KD and DIST.

The figure of this pair was not read at its source, so none is printed; the abstract gives 0.7 points as the largest
gain on ImageNet. ε is the code's default (our assumption).
"""

_base_ = ["./_base_/imagenet.py"]

pair = "swin_tiny-resnet18"
title = "ImageNet: Swin-T → ResNet-18"
adapter = dict(label_smoothing=0.1)
teacher = dict(model="swin_tiny_patch4_window7_224.ms_in1k")
student = dict(model="resnet18")

_exits = [("logits", tap) for tap in ("layer1", "layer2", "layer3", "layer4", "logits")]
methods = dict(
    KD=dict(links=[dict(type="KD", weight=1.0, temperature=1.0)]),
    DIST=dict(links=[dict(type="DIST", weight=2.0, temperature=1.0)]),
    OFAKD=dict(links=[dict(type="OFAKD", taps=_exits, epsilon=1.0)]),
)
