"""CIFAR-10 as JPEG copy, 32×32, a pool of 10,000 images of which a few a class are labelled.

The teacher is zero-shot: EfficientNet-Lite2 and MiniLM, joined by a map that has not seen these images; it looks at
them enlarged to 160 pixels. Its logits of two augmented views of each image are computed once, for all runs. Students
are ResNet-8, from random weights, in bfloat16 (a processor without it wants --set recipe.precision=float32, for other
numbers); updates are counted, 6 epochs of 50 steps. λ and temperature are the published ones and were not varied.

The rate is by val, for plain students, seeds 100 and 101; top-1 with 4 and 16 labels: 20.1, 27.7 at 1e-3; 19.8, 29.1 at
3e-3; 19.8, 30.5 at 1e-2.
"""

from limbeck.multimodal.vlm.configs._base_.parts import few_labels as _few_labels

task = "vlm-classification"
benchmark = "dho-cifar10-jpeg"
benchmark_version = 1

_train = dict(type="CIFAR10JPEG", augment=dict(pad=4, flip=True), views=2, limit=10000)
data = dict(
    train=dict(type="PartlyLabelled", split="train", of=_train, shots=4, shots_seed="run"),
    val=dict(type="CIFAR10JPEG", split="val", limit=1000),
    test=dict(type="CIFAR10JPEG", split="test", limit=5000),
    batch_size=32,
    unlabelled_batch_size=64,
    steps=50,
)
adapter = dict(type="VLMAdapter", search=True)
metric = dict(type="DualHeadMetric")

teacher = dict(
    type="ZeroShotJoined",
    classes=["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
    pretrained=True,
)
student = dict(
    type="DualHead",
    backbone=dict(
        type="CIFARResNet", depth=8, width=16, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), num_classes=0
    ),
    num_classes=10,
)
recipe = dict(
    epochs=6,
    precision="bfloat16",
    channels_last=True,
    optimizer=dict(type="AdamW", lr=1e-2, weight_decay=0.01),
    param_scheduler=[
        dict(type="LinearLR", start_factor=0.01, end=1),
        dict(type="LinearLR", start_factor=1.0, end_factor=0.0, begin=1),
    ],
)
teacher_recipe = dict(epochs=0)  # zero-shot: evaluated, not trained
cache = dict(dtype="float16")
methods = _few_labels(student)

# Chosen on val: benchmarks/selection/dho-cifar10.json has the grid, 4 labels a class.
for _name, _weight in dict(CLIPFD=200_000.0, CLIPCRD=100.0).items():
    methods[_name]["links"][0]["weight"] = _weight
