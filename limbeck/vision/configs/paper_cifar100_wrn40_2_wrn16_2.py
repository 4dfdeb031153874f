"""CIFAR-100, paper tier: WRN-40-2 (published: 75.61 %) teaches WRN-16-2 (73.26 alone); KD 74.92, DKD 76.23."""

_base_ = ["./_base_/cifar100.py"]

pair = "wrn40-2-wrn16-2"
title = "CIFAR-100: WRN-40-2 → WRN-16-2"
teacher = dict(type="WideResNet", depth=40, widen=2)
student = dict(type="WideResNet", depth=16, widen=2)

_ramp = dict(type="epochs", warmup_epochs=20, total_epochs=240)
methods = {
    "DKD": dict(links=[dict(type="DKD", beta=6.0, schedule=_ramp)]),
    "DKD+LS": dict(links=[dict(type="DKD", beta=6.0, temperature=2.0, standardise=True, weight=9.0, schedule=_ramp)]),
    "ReviewKD": dict(links=[dict(type="ReviewKD", weight=5.0, schedule=_ramp)]),
    "SimKD": dict(student=dict(student=student, teacher_channels=128)),
}

reported = {
    "teacher": 75.61,
    "plain": 73.26,
    "KD": 74.92,
    "DKD": 76.23,
    "FitNet": 73.58,
    "AT": 74.08,
    "RKD": 73.35,
    "SPKD": 73.83,
    "VID": 74.11,
    "CRD": 75.48,
    "KD+LS": 76.11,
    "DKD+LS": 76.39,
}
reported_source = (
    "arXiv 1910.10699 (teacher, plain, KD, FitNet, AT, RKD, SPKD, VID, CRD); "
    "arXiv 2203.08679 (DKD); "
    "arXiv 2403.01427 (KD+LS, DKD+LS)"
)
