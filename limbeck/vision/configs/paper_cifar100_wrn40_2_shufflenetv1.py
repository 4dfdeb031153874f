"""CIFAR-100, paper tier: WRN-40-2 (published: 75.61 %) teaches ShuffleNetV1 (70.50 alone); KD 74.83, DKD 76.70."""

_base_ = ["./_base_/cifar100.py"]

pair = "wrn40-2-shufflenetv1"
title = "CIFAR-100: WRN-40-2 → ShuffleNetV1"
teacher = dict(type="WideResNet", depth=40, widen=2)
student = dict(type="CIFARShuffleNetV1")
recipe = dict(optimizer=dict(lr=0.01))

_ramp = dict(type="epochs", warmup_epochs=20, total_epochs=240)
_exits = [("logits", tap) for tap in ("layer1", "layer2", "layer3", "logits")]
methods = {
    "DKD": dict(links=[dict(type="DKD", beta=8.0, schedule=_ramp)]),
    "DKD+LS": dict(links=[dict(type="DKD", beta=8.0, temperature=2.0, standardise=True, weight=9.0, schedule=_ramp)]),
    "ReviewKD": dict(links=[dict(type="ReviewKD", weight=5.0, schedule=_ramp)]),
    "SimKD": dict(student=dict(student=student, teacher_channels=128)),
    "OFAKD": dict(links=[dict(type="OFAKD", taps=_exits)]),
}

reported = {
    "teacher": 75.61,
    "plain": 70.50,
    "KD": 74.83,
    "DKD": 76.70,
    "FitNet": 73.73,
    "AT": 73.32,
    "RKD": 72.21,
    "SPKD": 74.52,
    "VID": 73.61,
    "CRD": 76.05,
}
reported_source = "arXiv 1910.10699 (teacher, plain, KD, FitNet, AT, RKD, SPKD, VID, CRD); arXiv 2203.08679 (DKD)"
