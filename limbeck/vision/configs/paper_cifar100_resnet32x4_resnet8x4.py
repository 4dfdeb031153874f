"""CIFAR-100, paper tier: ResNet-32x4 (published: 79.42 %) teaches ResNet-8x4 (72.50 alone); KD 73.33, DKD 76.32."""

_base_ = ["./_base_/cifar100.py"]

pair = "resnet32x4-resnet8x4"
title = "CIFAR-100: ResNet-32x4 → ResNet-8x4"
teacher = dict(type="CIFARResNet", depth=32, widths=(32, 64, 128, 256), shortcut="conv")
student = dict(type="CIFARResNet", depth=8, widths=(32, 64, 128, 256), shortcut="conv")

_ramp = dict(type="epochs", warmup_epochs=20, total_epochs=240)
methods = {
    "DKD": dict(links=[dict(type="DKD", beta=8.0, schedule=_ramp)]),
    "DKD+LS": dict(links=[dict(type="DKD", beta=8.0, temperature=2.0, standardise=True, weight=9.0, schedule=_ramp)]),
    "ReviewKD": dict(links=[dict(type="ReviewKD", weight=5.0, schedule=_ramp)]),
    "KD++": dict(links=[dict(type="KD", weight=3.5, schedule=_ramp), dict(type="ND", weight=2.0)]),
    "DKD++": dict(links=[dict(type="DKD", alpha=2.0, beta=8.0, schedule=_ramp), dict(type="ND", weight=0.5)]),
    "SimKD": dict(student=dict(student=student, teacher_channels=256)),
}

reported = {
    "teacher": 79.42,
    "plain": 72.50,
    "KD": 73.33,
    "DKD": 76.32,
    "DIST": 76.31,
    "FitNet": 73.50,
    "AT": 73.44,
    "RKD": 71.90,
    "SPKD": 72.94,
    "VID": 73.09,
    "ReviewKD": 75.63,
    "CRD": 75.51,
    "KD+LS": 76.62,
    "DKD+LS": 77.01,
    "KD++": 75.54,
    "DKD++": 76.28,
}
reported_source = (
    "arXiv 1910.10699 (teacher, plain, KD, FitNet, AT, RKD, SPKD, VID, CRD); "
    "arXiv 2203.08679 (DKD); "
    "arXiv 2205.10536 (DIST); "
    "arXiv 2305.17007 (ReviewKD, KD++, DKD++); "
    "arXiv 2403.01427 (KD+LS, DKD+LS)"
)
