"""Digits of which a few a class are labelled: data, networks, recipe and methods that every number of shots shares.

The teacher is a CLIP of digits that 40 % wrong captions have taught, on digits that no student sees: biased and
imperfect, as a zero-shot teacher is. Updates are counted, not passes over the labelled images: 10 epochs of 30 steps
with 32 labelled and 64 unlabelled ones. Images come in 8 augmented views, whose teacher logits are cached for every
method, seed and number of labels.
"""

from limbeck.multimodal.vlm.configs._base_.parts import few_labels as _few_labels

task = "vlm-classification"
benchmark_version = 1

_train = dict(type="Digits", augment=dict(pad=1), views=8, limit=781)  # the others are the teacher's
data = dict(
    train=dict(type="PartlyLabelled", split="train", of=_train, shots=4, shots_seed="run"),
    val=dict(type="Digits", split="val"),
    test=dict(type="Digits", split="test"),
    batch_size=32,
    unlabelled_batch_size=64,
    steps=30,
)
adapter = dict(type="VLMAdapter", search=True)
metric = dict(type="DualHeadMetric")

teacher = dict(type="ZeroShotTiny", pretrained=True)
student = dict(type="DualHead", backbone=dict(type="SmallCNN"), num_classes=10)
recipe = dict(
    epochs=10,
    optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.01),
    param_scheduler=[
        dict(type="LinearLR", start_factor=0.01, end=1),
        dict(type="LinearLR", start_factor=1.0, end_factor=0.0, begin=1),
    ],
)
teacher_recipe = dict(epochs=0)  # zero-shot: evaluated, not trained
cache = dict(dtype="float16")
methods = _few_labels(student)
