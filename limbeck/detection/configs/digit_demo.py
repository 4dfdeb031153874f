"""Digit scenes, 64×64, for the demo: GFL on two stages of a ResNet-18 teaches one of a third of its width.

The smallest detection benchmark. All digits are of about one size (24 to 29 pixels), so one map, of stride 8, finds
them; batches are of 2 scenes, for steps count more than scenes when there are few of either.

Chosen on val, plain first, with seeds 100 and 101; no test figure was looked at. mAP there, with more scenes than now:
of the plain student at rates of 3, 6, 10 and 16 · 1e-3: 8.2, 10.0, 9.3, 9.5 (360 scenes); of the teacher of 4 epochs
23.2, and 17.4 with 32 channels at 2.5e-3 (300 scenes); beside that teacher and 9.3 of plain, of PKD at weights of 3, 10
and 30: 13.8, 15.7, 15.3, and of ACAM-KD at 1, 5, 20 and 60: 10.5, 11.7, 13.1, 12.8. For time, 240 scenes were kept:
teacher 19.8, plain 7.1, PKD 11.6, ACAM-KD 10.5 (seeds 100 to 102). Larger batches, images of 80 and 96 pixels, two and
three maps and batch norm in the head were tried in single runs and left.
"""

from limbeck.detection._heads import HeadOptions, detector_config

task = "object-detection"
benchmark = "digit-scenes-boxes-demo"
benchmark_version = 1
pair = "gfl24-gfl8"
title = "Digit scenes (64×64), boxes"

_scenes = dict(type="DigitScenesBoxes", size=(64, 64), digits=(2, 3), scale=(24.0, 28.8))
data = dict(
    train=dict(**_scenes, split="train", count=240),
    val=dict(**_scenes, split="val", count=80),
    test=dict(**_scenes, split="test", count=200),
    batch_size=2,
    eval_batch_size=40,
)
adapter = dict(type="DetectionAdapter")
metric = dict(type="DetectionMetric", primary="mAP")


def _gfl(width: int, channels: int) -> dict:
    """GFL on one map of stride 8, `channels` wide, above a ResNet-18 of two stages, `width` and 2 · `width` wide."""
    backbone = dict(
        type="ResNet",
        depth=18,
        base_channels=width,
        num_stages=2,
        strides=(1, 2),
        dilations=(1, 1),
        out_indices=(0, 1),
        frozen_stages=-1,
        norm_eval=False,
    )
    options = HeadOptions(head="gfl", channels=channels, num_outs=1, stacked_convs=1, max_per_img=30)
    config = detector_config(backbone, {4: width, 8: 2 * width}, options)
    return dict(type="mmdet", config=config, num_classes=10, input_size=(3, 64, 64), mean=0.5, std=0.5)


def _recipe(epochs: int, lr: float) -> dict:
    """AdamW; one epoch of warm-up, then cosine decay."""
    return dict(
        epochs=epochs,
        optimizer=dict(type="AdamW", lr=lr, weight_decay=0.01),
        param_scheduler=[dict(type="LinearLR", start_factor=0.04, end=1), dict(type="CosineAnnealingLR", begin=1)],
    )


teacher = _gfl(24, 48)
student = _gfl(8, 24)
recipe = _recipe(2, 6e-3)
teacher_recipe = _recipe(5, 1.5e-3)
cache = dict(dtype="float16")

_neck = [("neck[0]", "neck[0]")]
methods = {
    "PKD": dict(links=[dict(type="PKD", taps=_neck, weight=10.0)]),
    "ACAM-KD": dict(links=[dict(type="ACAMKD", taps=_neck, max_tokens=64, weight=20.0)]),
}
