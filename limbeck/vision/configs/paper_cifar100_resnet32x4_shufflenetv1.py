"""CIFAR-100, paper tier: ResNet-32x4 (published: 79.42 %) teaches ShuffleNetV1 (70.50 alone); KD 74.07, DKD 76.45."""

_base_ = ["./_base_/cifar100.py"]

pair = "resnet32x4-shufflenetv1"
title = "CIFAR-100: ResNet-32x4 → ShuffleNetV1"
teacher = dict(type="CIFARResNet", depth=32, widths=(32, 64, 128, 256), shortcut="conv")
student = dict(type="CIFARShuffleNetV1")
recipe = dict(optimizer=dict(lr=0.01))

_ramp = dict(type="epochs", warmup_epochs=20, total_epochs=240)
_exits = [("logits", tap) for tap in ("layer1", "layer2", "layer3", "logits")]
methods = {
    "DKD": dict(links=[dict(type="DKD", beta=8.0, schedule=_ramp)]),
    "DKD+LS": dict(links=[dict(type="DKD", beta=8.0, temperature=2.0, standardise=True, weight=9.0, schedule=_ramp)]),
    "ReviewKD": dict(links=[dict(type="ReviewKD", weight=5.0, schedule=_ramp)]),
    "KD++": dict(links=[dict(type="KD", weight=2.5, schedule=_ramp), dict(type="ND", weight=1.5)]),
    "DKD++": dict(links=[dict(type="DKD", alpha=0.5, beta=8.0, schedule=_ramp), dict(type="ND", weight=4.0)]),
    "SimKD": dict(student=dict(student=student, teacher_channels=256)),
    "OFAKD": dict(links=[dict(type="OFAKD", taps=_exits)]),
}

reported = {
    "teacher": 79.42,
    "plain": 70.50,
    "KD": 74.07,
    "DKD": 76.45,
    "DIST": 76.34,
    "FitNet": 73.59,
    "AT": 71.73,
    "RKD": 72.28,
    "SPKD": 73.48,
    "VID": 73.38,
    "ReviewKD": 77.45,
    "CRD": 75.11,
    "KD++": 75.45,
    "DKD++": 77.11,
}
reported_source = (
    "arXiv 1910.10699 (teacher, plain, KD, FitNet, AT, RKD, SPKD, VID, CRD); "
    "arXiv 2203.08679 (DKD); "
    "arXiv 2205.10536 (DIST); "
    "arXiv 2305.17007 (ReviewKD, KD++, DKD++)"
)
