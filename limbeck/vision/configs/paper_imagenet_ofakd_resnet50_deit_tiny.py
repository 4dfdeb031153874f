"""ImageNet, paper tier: ResNet-50 → DeiT-T, a pair of OFA-KD's table (arXiv 2310.19444), beside KD and DIST.

The figure of this pair was not read at its source, so none is printed; the abstract gives 0.7 points as the largest
gain on ImageNet. ε is the code's default (our assumption).
"""

_base_ = ["./_base_/imagenet_300_epochs.py"]

pair = "resnet50-deit_tiny"
title = "ImageNet: ResNet-50 → DeiT-T"
adapter = dict(label_smoothing=0.1)
teacher = dict(model="resnet50.a1_in1k")
student = dict(model="deit_tiny_patch16_224")

_exits = [("logits", tap) for tap in ("blocks.1", "blocks.3", "blocks.9", "blocks.11", "logits")]
methods = dict(
    KD=dict(links=[dict(type="KD", weight=1.0, temperature=1.0)]),
    DIST=dict(links=[dict(type="DIST", weight=2.0, temperature=1.0)]),
    OFAKD=dict(links=[dict(type="OFAKD", taps=_exits, epsilon=1.0)]),
)
