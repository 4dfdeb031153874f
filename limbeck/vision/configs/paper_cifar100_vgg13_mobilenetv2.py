"""CIFAR-100, paper tier: VGG-13 (published: 74.64 %) teaches MobileNetV2 (64.60 alone); KD 67.37, DKD 69.71."""

_base_ = ["./_base_/cifar100_four_stages.py"]

pair = "vgg13-mobilenetv2"
title = "CIFAR-100: VGG-13 → MobileNetV2"
teacher = dict(type="CIFARVGG", depth=13)
student = dict(type="CIFARMobileNetV2")
recipe = dict(optimizer=dict(lr=0.01))

_ramp = dict(type="epochs", warmup_epochs=20, total_epochs=240)
_levels = [(f"preact{i}", f"layer{i}") for i in (1, 2, 3, 4)] + [("global_pool", "global_pool")]
_exits = [("logits", tap) for tap in ("layer1", "layer2", "layer3", "layer4", "logits")]
methods = {
    "DKD": dict(links=[dict(type="DKD", beta=6.0, schedule=_ramp)]),
    "DKD+LS": dict(links=[dict(type="DKD", beta=6.0, temperature=2.0, standardise=True, weight=9.0, schedule=_ramp)]),
    # No ReviewKD weight is published for this pair; 5 is the default of DKD's code base (our assumption).
    "ReviewKD": dict(links=[dict(type="ReviewKD", taps=_levels, weight=5.0, schedule=_ramp)]),
    "SimKD": dict(student=dict(student=student, teacher_channels=512)),
    "OFAKD": dict(links=[dict(type="OFAKD", taps=_exits)]),
}

reported = {
    "teacher": 74.64,
    "plain": 64.60,
    "KD": 67.37,
    "DKD": 69.71,
    "FitNet": 64.14,
    "AT": 59.40,
    "RKD": 64.52,
    "SPKD": 66.30,
    "VID": 65.56,
    "CRD": 69.73,
    "KD+LS": 68.61,
    "DKD+LS": 69.98,
}
reported_source = (
    "arXiv 1910.10699 (teacher, plain, KD, FitNet, AT, RKD, SPKD, VID, CRD); "
    "arXiv 2203.08679 (DKD); "
    "arXiv 2403.01427 (KD+LS, DKD+LS)"
)
