"""CIFAR-10 (JPEG), ResNet-56 → a ResNet-8 whose stem halves the image: the small CNN of the cross-family comparison."""

_base_ = ["./_base_/cifar10_jpeg.py"]

pair = "resnet56-cnn"
title = "CIFAR-10 (JPEG), 4,000 training images: CNN → CNN"
_stats = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
student = dict(type="CIFARResNet", depth=8, width=16, stem_stride=2, **_stats)

methods = dict(
    RKD=dict(links=[dict(type="RKD", weight=0.01)]),
    SPKD=dict(links=[dict(type="SPKD", weight=300.0)]),
    FitNet=dict(links=[dict(type="FitNet", weight=1.0, taps=[("layer3", "layer2")])]),
    OFAKD=dict(links=[dict(type="OFAKD", weight=1.0)]),
)
