"""CIFAR-100, paper tier: VGG-13 (published: 74.64 %) teaches VGG-8 (70.36 alone); KD 72.98, DKD 74.68."""

_base_ = ["./_base_/cifar100_four_stages.py"]

pair = "vgg13-vgg8"
title = "CIFAR-100: VGG-13 → VGG-8"
teacher = dict(type="CIFARVGG", depth=13)
student = dict(type="CIFARVGG", depth=8)

_ramp = dict(type="epochs", warmup_epochs=20, total_epochs=240)
_levels = [(f"preact{i}", f"layer{i}") for i in (1, 2, 3, 4)] + [("global_pool", "global_pool")]
methods = {
    "DKD": dict(links=[dict(type="DKD", beta=6.0, schedule=_ramp)]),
    "DKD+LS": dict(links=[dict(type="DKD", beta=6.0, temperature=2.0, standardise=True, weight=9.0, schedule=_ramp)]),
    # No ReviewKD weight is published for this pair; 5 is the default of DKD's code base (our assumption).
    "ReviewKD": dict(links=[dict(type="ReviewKD", taps=_levels, weight=5.0, schedule=_ramp)]),
    "SimKD": dict(student=dict(student=student, teacher_channels=512)),
}

reported = {
    "teacher": 74.64,
    "plain": 70.36,
    "KD": 72.98,
    "DKD": 74.68,
    "FitNet": 71.02,
    "AT": 71.43,
    "RKD": 71.48,
    "SPKD": 72.68,
    "VID": 71.23,
    "CRD": 73.94,
    "KD+LS": 74.36,
    "DKD+LS": 74.81,
}
reported_source = (
    "arXiv 1910.10699 (teacher, plain, KD, FitNet, AT, RKD, SPKD, VID, CRD); "
    "arXiv 2203.08679 (DKD); "
    "arXiv 2403.01427 (KD+LS, DKD+LS)"
)
