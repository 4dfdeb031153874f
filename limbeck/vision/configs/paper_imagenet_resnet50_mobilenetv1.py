"""ImageNet, paper tier: ResNet-50 (published: 76.16 %) teaches MobileNetV1 (68.87 alone); KD 70.50, DKD 72.05.

DIST's figure is with a plain student of 70.13. timm's blocks have no tap before the last ReLU, so ReviewKD reads both
after it. The weights of KD++ (8 and 4) are those that its authors give ReviewKD++ here; they print none for KD++.
"""

_base_ = ["./_base_/imagenet.py"]

pair = "resnet50-mobilenetv1"
title = "ImageNet: ResNet-50 → MobileNetV1"
teacher = dict(model="resnet50.tv_in1k")
student = dict(model="mobilenetv1_100")

_ramp = dict(type="epochs", warmup_epochs=1, total_epochs=100)
_slow = dict(type="epochs", warmup_epochs=20, total_epochs=100)
_stages = [(f"layer{i}", f"blocks.{i}") for i in (1, 2, 3, 4)]
_levels = [*_stages, ("global_pool", "global_pool")]
methods = {
    "KD": dict(task_weight=0.5, links=[dict(type="KD", weight=0.5, temperature=1.0)]),
    "DKD": dict(links=[dict(type="DKD", beta=2.0, temperature=1.0, schedule=_ramp)]),
    "DIST": dict(links=[dict(type="DIST", weight=2.0, temperature=1.0)]),
    "AT": dict(links=[dict(type="AT", taps=_stages, weight=1000.0)]),
    "ReviewKD": dict(links=[dict(type="ReviewKD", taps=_levels, weight=8.0, schedule=_ramp)]),
    "CRD": dict(links=[dict(type="CRD", negatives=16384, weight=0.8)]),
    "KD++": dict(links=[dict(type="KD", weight=8.0, schedule=_slow), dict(type="ND", weight=4.0)]),
    "ReviewKD++": dict(
        links=[dict(type="ReviewKD", taps=_levels, weight=8.0, schedule=_slow), dict(type="ND", weight=4.0)]
    ),
}

reported = {
    "teacher": 76.16,
    "plain": 68.87,
    "KD": 70.50,
    "DKD": 72.05,
    "DIST": 73.24,
    "ReviewKD": 72.56,
    "CRD": 71.37,
    "KD++": 72.77,
    "ReviewKD++": 72.96,
}
reported_source = (
    "arXiv 2203.08679 (KD, DKD); arXiv 2205.10536 (DIST); "
    "arXiv 2305.17007 (teacher, plain, ReviewKD, CRD, KD++, ReviewKD++)"
)
