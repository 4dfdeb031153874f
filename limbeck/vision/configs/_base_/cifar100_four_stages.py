"""`cifar100` for two nets of four stages (VGG, the bottleneck ResNet-50, MobileNetV2)."""

_base_ = ["cifar100.py"]

_stages = [(f"layer{i}", f"layer{i}") for i in (1, 2, 3, 4)]
methods = dict(
    AT=dict(links=[dict(type="AT", taps=_stages, weight=1000.0)]),
    SPKD=dict(links=[dict(type="SPKD", taps=[("layer4", "layer4")], weight=3000.0)]),
    VID=dict(links=[dict(type="VID", taps=_stages, weight=1.0)]),
    OFD=dict(links=[dict(type="OFD", taps=[(f"preact{i}", f"preact{i}") for i in (1, 2, 3, 4)], weight=1e-3)]),
)
