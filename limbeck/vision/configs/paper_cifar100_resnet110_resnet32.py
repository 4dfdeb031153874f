"""CIFAR-100, paper tier: ResNet-110 (published: 74.31 %) teaches ResNet-32 (71.14 alone); KD 73.08, DKD 74.11."""

_base_ = ["./_base_/cifar100.py"]

pair = "resnet110-resnet32"
title = "CIFAR-100: ResNet-110 → ResNet-32"
teacher = dict(type="CIFARResNet", depth=110, shortcut="conv")
student = dict(type="CIFARResNet", depth=32, shortcut="conv")

_ramp = dict(type="epochs", warmup_epochs=20, total_epochs=240)
methods = {
    "DKD": dict(links=[dict(type="DKD", beta=2.0, schedule=_ramp)]),
    "DKD+LS": dict(links=[dict(type="DKD", beta=2.0, temperature=2.0, standardise=True, weight=9.0, schedule=_ramp)]),
    "ReviewKD": dict(links=[dict(type="ReviewKD", weight=1.0, schedule=_ramp)]),
    "SimKD": dict(student=dict(student=student, teacher_channels=64)),
}

reported = {
    "teacher": 74.31,
    "plain": 71.14,
    "KD": 73.08,
    "DKD": 74.11,
    "FitNet": 71.06,
    "AT": 72.31,
    "RKD": 71.82,
    "SPKD": 72.69,
    "VID": 72.61,
    "CRD": 73.48,
    "KD+LS": 74.17,
    "DKD+LS": 74.29,
}
reported_source = (
    "arXiv 1910.10699 (teacher, plain, KD, FitNet, AT, RKD, SPKD, VID, CRD); "
    "arXiv 2203.08679 (DKD); "
    "arXiv 2403.01427 (KD+LS, DKD+LS)"
)
