"""ImageNet, paper tier: ResNet-34 (published: 73.31 %) teaches ResNet-18 (69.76 alone); KD 71.03, DKD 71.70.

timm's blocks have no tap before the last ReLU, so ReviewKD reads both after it. The weights of KD++ and DKD++ are their
authors' for ResNet-152 and ResNet-101 as teachers; they print none for this pair.
"""

_base_ = ["./_base_/imagenet.py"]

pair = "resnet34-resnet18"
title = "ImageNet: ResNet-34 → ResNet-18"
teacher = dict(model="resnet34.tv_in1k")
student = dict(model="resnet18")

_ramp = dict(type="epochs", warmup_epochs=1, total_epochs=100)
_slow = dict(type="epochs", warmup_epochs=20, total_epochs=100)
_stages = [(f"layer{i}", f"layer{i}") for i in (1, 2, 3, 4)]
methods = {
    "KD": dict(task_weight=0.5, links=[dict(type="KD", weight=0.5, temperature=1.0)]),
    "KD+LS": dict(task_weight=0.5, links=[dict(type="KD", weight=9.0, temperature=2.0, standardise=True)]),
    "DKD": dict(links=[dict(type="DKD", beta=0.5, temperature=1.0, schedule=_ramp)]),
    "DIST": dict(links=[dict(type="DIST", weight=2.0, temperature=1.0)]),
    "AT": dict(links=[dict(type="AT", taps=_stages, weight=1000.0)]),
    "ReviewKD": dict(
        links=[dict(type="ReviewKD", taps=[*_stages, ("global_pool", "global_pool")], weight=1.0, schedule=_ramp)]
    ),
    "CRD": dict(links=[dict(type="CRD", negatives=16384, weight=0.8)]),
    "KD++": dict(links=[dict(type="KD", weight=4.0, schedule=_slow), dict(type="ND", weight=2.0)]),
    "DKD++": dict(
        links=[dict(type="DKD", alpha=0.8, beta=0.5, temperature=1.0, schedule=_slow), dict(type="ND", weight=2.0)]
    ),
}

reported = {
    "teacher": 73.31,
    "plain": 69.76,
    "KD": 71.03,
    "DKD": 71.70,
    "DIST": 72.07,
    "ReviewKD": 71.62,
    "CRD": 71.17,
    "KD++": 71.98,
    "DKD++": 72.07,
}
reported_source = (
    "arXiv 2203.08679 (KD, DKD); arXiv 2205.10536 (teacher, plain, DIST); arXiv 2305.17007 (ReviewKD, CRD, KD++, DKD++)"
)
