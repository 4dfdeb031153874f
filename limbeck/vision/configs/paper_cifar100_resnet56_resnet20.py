"""CIFAR-100, paper tier: ResNet-56 (published: 72.34 %) teaches ResNet-20 (69.06 alone); KD 70.66, DKD 71.97."""

_base_ = ["./_base_/cifar100.py"]

pair = "resnet56-resnet20"
title = "CIFAR-100: ResNet-56 → ResNet-20"
teacher = dict(type="CIFARResNet", depth=56, shortcut="conv")
student = dict(type="CIFARResNet", depth=20, shortcut="conv")

_ramp = dict(type="epochs", warmup_epochs=20, total_epochs=240)
methods = {
    "DKD": dict(links=[dict(type="DKD", beta=2.0, schedule=_ramp)]),
    "DKD+LS": dict(links=[dict(type="DKD", beta=2.0, temperature=2.0, standardise=True, weight=9.0, schedule=_ramp)]),
    "ReviewKD": dict(links=[dict(type="ReviewKD", weight=0.6, schedule=_ramp)]),
    "KD++": dict(links=[dict(type="KD", weight=1.0, schedule=_ramp), dict(type="ND", weight=2.0)]),
    "DKD++": dict(links=[dict(type="DKD", alpha=2.5, beta=4.0, schedule=_ramp), dict(type="ND", weight=3.5)]),
    "SimKD": dict(student=dict(student=student, teacher_channels=64)),
}

reported = {
    "teacher": 72.34,
    "plain": 69.06,
    "KD": 70.66,
    "DKD": 71.97,
    "DIST": 71.75,
    "FitNet": 69.21,
    "AT": 70.55,
    "RKD": 69.61,
    "SPKD": 69.67,
    "VID": 70.38,
    "ReviewKD": 71.89,
    "CRD": 71.16,
    "KD+LS": 71.43,
    "DKD+LS": 72.32,
    "KD++": 72.53,
    "DKD++": 72.16,
}
reported_source = (
    "arXiv 1910.10699 (teacher, plain, KD, FitNet, AT, RKD, SPKD, VID, CRD); "
    "arXiv 2203.08679 (DKD); "
    "arXiv 2205.10536 (DIST); "
    "arXiv 2305.17007 (ReviewKD, KD++, DKD++); "
    "arXiv 2403.01427 (KD+LS, DKD+LS)"
)
