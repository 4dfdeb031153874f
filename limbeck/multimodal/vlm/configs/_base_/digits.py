"""Digits of which a few a class are labelled: data, networks, recipe and methods that every number of shots shares.

The teacher is a CLIP of digits, taught on digits that no student sees; by 40 % wrong captions, so that it is biased and
imperfect, as a zero-shot teacher is, or by right ones in `clean` pairs. Updates are counted, not passes over the
labelled images: 10 epochs of 30 steps with 32 labelled and 64 unlabelled ones. Images come in 8 augmented views, whose
teacher logits are cached for every method, seed and number of labels.

The rate is by val, for plain students, seeds 100 to 102; top-1 with 1, 4 and 16 labels: 47.0, 74.4, 83.3 at 1e-3; 48.8,
79.3, 88.4 at 2e-3; 50.7, 79.7, 93.3 at 5e-3; 52.2, 80.4, 93.4 at 1e-2; 49.0, 80.4, 93.6 at 2e-2.
"""

from limbeck.multimodal.vlm.configs._base_.parts import few_labels as _few_labels

task = "vlm-classification"
benchmark = "dho-digits"
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
    optimizer=dict(type="AdamW", lr=1e-2, weight_decay=0.01),
    param_scheduler=[
        dict(type="LinearLR", start_factor=0.01, end=1),
        dict(type="LinearLR", start_factor=1.0, end_factor=0.0, begin=1),
    ],
)
teacher_recipe = dict(epochs=0)  # zero-shot: evaluated, not trained
cache = dict(dtype="float16")
methods = _few_labels(student)

# Chosen on val: benchmarks/selection/dho-digits.json has the grid, 4 labels a class and the noisy teacher.
for _name, _weight in dict(CLIPFD=200.0, CLIPCRD=0.1, CLIPICL=0.1, CLIPGD=0.01).items():
    methods[_name]["links"][0]["weight"] = _weight
