"""Digits of which a few a class are labelled: data, networks, recipe and methods that every number of shots shares.

The teacher is a CNN that was trained on all labels: a stand-in, which knows more than a vision-language model would.
Updates are counted, not passes over the labelled images: 10 epochs of 30 steps with 32 labelled and 64 unlabelled ones.
Images come in 8 augmented views, whose teacher logits are cached for every method, seed and number of shots.
"""

task = "vlm-classification"
benchmark_version = 1

data = dict(
    train=dict(
        type="PartlyLabelled",
        split="train",
        of=dict(type="Digits", augment=dict(pad=1), views=8),
        shots=4,
        shots_seed="run",
    ),
    val=dict(type="Digits", split="val"),
    test=dict(type="Digits", split="test"),
    batch_size=32,
    unlabelled_batch_size=64,
    steps=30,
)
teacher_data = dict(
    train=dict(type="Digits", split="train", augment=dict(pad=1), views=0),
    batch_size=64,
    unlabelled_batch_size=0,
    steps=0,
)
adapter = dict(type="VLMAdapter", search=True)
metric = dict(type="DualHeadMetric")

teacher = dict(
    type="CIFARResNet",
    depth=20,
    width=16,
    in_chans=1,
    num_classes=10,
    mean=(0.3,),
    std=(0.38,),
    input_size=(1, 8, 8),
)
student = dict(type="DualHead", backbone=dict(type="SmallCNN"), num_classes=10)
_two_heads = dict(student, kd_head="linear")

recipe = dict(
    epochs=10,
    optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.01),
    param_scheduler=[
        dict(type="LinearLR", start_factor=0.01, end=1),
        dict(type="LinearLR", start_factor=1.0, end_factor=0.0, begin=1),
    ],
)
teacher_recipe = dict(
    epochs=20,
    optimizer=dict(type="SGD", lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True),
    param_scheduler=[dict(type="CosineAnnealingLR")],
)
cache = dict(dtype="float16")

# T = 2 and λ = 0.5, as published; on one head the same link is KD, and CE + KD.
methods = {
    "KD": dict(task_weight=0.0, links=[dict(type="DHO", weight=1.0)]),
    "KD-labelled": dict(task_weight=0.0, links=[dict(type="DHO", weight=1.0, unlabelled=False)]),
    "CE+KD": dict(task_weight=0.5, links=[dict(type="DHO", weight=0.5)]),
    "DHO": dict(task_weight=0.5, student=_two_heads, links=[dict(type="DHO", weight=0.5)]),
}
