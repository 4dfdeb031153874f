"""CIFAR-100, paper tier: WRN-40-2 (published: 75.61 %) teaches WRN-40-1 (71.98 alone); KD 73.54, DKD 74.81."""

_base_ = ["./_base_/cifar100.py"]

pair = "wrn40-2-wrn40-1"
title = "CIFAR-100: WRN-40-2 → WRN-40-1"
teacher = dict(type="WideResNet", depth=40, widen=2)
student = dict(type="WideResNet", depth=40, widen=1)

_ramp = dict(type="epochs", warmup_epochs=20, total_epochs=240)
methods = {
    "DKD": dict(links=[dict(type="DKD", beta=6.0, schedule=_ramp)]),
    "DKD+LS": dict(links=[dict(type="DKD", beta=6.0, temperature=2.0, standardise=True, weight=9.0, schedule=_ramp)]),
    "ReviewKD": dict(links=[dict(type="ReviewKD", weight=5.0, schedule=_ramp)]),
    "KD++": dict(links=[dict(type="KD", weight=1.0, schedule=_ramp), dict(type="ND", weight=1.5)]),
    "DKD++": dict(links=[dict(type="DKD", alpha=1.0, beta=6.0, schedule=_ramp), dict(type="ND", weight=1.0)]),
    "SimKD": dict(student=dict(student=student, teacher_channels=128)),
}

reported = {
    "teacher": 75.61,
    "plain": 71.98,
    "KD": 73.54,
    "DKD": 74.81,
    "DIST": 74.43,
    "FitNet": 72.24,
    "AT": 72.77,
    "RKD": 72.22,
    "SPKD": 72.43,
    "VID": 73.30,
    "ReviewKD": 75.09,
    "CRD": 74.14,
    "KD+LS": 74.37,
    "DKD+LS": 74.89,
    "KD++": 74.59,
    "DKD++": 75.02,
}
reported_source = (
    "arXiv 1910.10699 (teacher, plain, KD, FitNet, AT, RKD, SPKD, VID, CRD); "
    "arXiv 2203.08679 (DKD); "
    "arXiv 2205.10536 (DIST); "
    "arXiv 2305.17007 (ReviewKD, KD++, DKD++); "
    "arXiv 2403.01427 (KD+LS, DKD+LS)"
)
