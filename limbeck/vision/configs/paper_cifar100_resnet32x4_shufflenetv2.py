"""CIFAR-100, paper tier: ResNet-32x4 (published: 79.42 %) teaches ShuffleNetV2 (71.82 alone); KD 74.45, DKD 77.07."""

_base_ = ["./_base_/cifar100.py"]

pair = "resnet32x4-shufflenetv2"
title = "CIFAR-100: ResNet-32x4 → ShuffleNetV2"
teacher = dict(type="CIFARResNet", depth=32, widths=(32, 64, 128, 256), shortcut="conv")
student = dict(type="CIFARShuffleNetV2")
recipe = dict(optimizer=dict(lr=0.01))

_ramp = dict(type="epochs", warmup_epochs=20, total_epochs=240)
_exits = [("logits", tap) for tap in ("layer1", "layer2", "layer3", "logits")]
methods = {
    "DKD": dict(links=[dict(type="DKD", beta=8.0, schedule=_ramp)]),
    "DKD+LS": dict(links=[dict(type="DKD", beta=8.0, temperature=2.0, standardise=True, weight=9.0, schedule=_ramp)]),
    "ReviewKD": dict(links=[dict(type="ReviewKD", weight=8.0, schedule=_ramp)]),
    "KD++": dict(links=[dict(type="KD", weight=4.0, schedule=_ramp), dict(type="ND", weight=0.5)]),
    "DKD++": dict(links=[dict(type="DKD", alpha=0.5, beta=6.0, schedule=_ramp), dict(type="ND", weight=0.5)]),
    "SimKD": dict(student=dict(student=student, teacher_channels=256)),
    "OFAKD": dict(links=[dict(type="OFAKD", taps=_exits)]),
}

reported = {
    "teacher": 79.42,
    "plain": 71.82,
    "KD": 74.45,
    "DKD": 77.07,
    "DIST": 77.35,
    "FitNet": 73.54,
    "AT": 72.73,
    "RKD": 73.21,
    "SPKD": 74.56,
    "VID": 73.40,
    "ReviewKD": 77.78,
    "CRD": 75.65,
    "KD+LS": 75.56,
    "DKD+LS": 77.37,
    "KD++": 76.42,
    "DKD++": 77.49,
}
reported_source = (
    "arXiv 1910.10699 (teacher, plain, KD, FitNet, AT, RKD, SPKD, VID, CRD); "
    "arXiv 2205.10536 (DIST); "
    "arXiv 2305.17007 (DKD, ReviewKD, KD++, DKD++); "
    "arXiv 2403.01427 (KD+LS, DKD+LS)"
)
