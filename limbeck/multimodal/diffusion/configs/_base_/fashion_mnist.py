"""Fashion-MNIST, 28×28, class-conditional: data, networks and recipe that students of every number of steps share.

The U-Net sees patches of 2 × 2 pixels and has two levels of 32 and 64 channels and attention in the middle, so that a
step takes half a second on one core of a processor without bfloat16. The teacher is trained on all 55,000 training
images; students have 400 updates on batches of 64 of the first 5,120.
"""

task = "image-generation"
benchmark = "diffusion-fashion-mnist"
benchmark_version = 1

_classes = [
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
]
data = dict(
    train=dict(type="FashionMNIST", split="train", limit=5120),
    val=dict(type="SampleRequests", classes=_classes, count=500, split="val", name="fashion-mnist"),
    test=dict(type="SampleRequests", classes=_classes, count=2000, split="test", name="fashion-mnist"),
    batch_size=64,
    eval_batch_size=100,
)
teacher_data = dict(train=dict(type="FashionMNIST", split="train"))
_requests = dict(type="SampleRequests", classes=_classes, count=5120, split="train", name="fashion-mnist")
adapter = dict(type="DiffusionAdapter")
metric = dict(
    type="GenerationMetric",
    primary="FD-fashion-mnist",
    higher_is_better=False,
    options=dict(features="fashion-mnist"),
)
_net = dict(
    type="Denoiser",
    network=dict(type="UNet2DModel", block_out_channels=(32, 64), patch_size=2),
    num_classes=10,
    image_size=28,
)
teacher = dict(_net, sampler=dict(steps=50, guidance=1.5))
student = dict(_net, sampler=dict(steps=1))
teacher_recipe = dict(
    epochs=5,
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.0),
    param_scheduler=[
        dict(type="LinearLR", start_factor=0.01, end=1),
        dict(type="CosineAnnealingLR", begin=1),
    ],
    clip_grad=dict(max_norm=1.0),
)
recipe = dict(
    epochs=5,
    optimizer=dict(type="AdamW", lr=5e-4, weight_decay=0.0),
    param_scheduler=[dict(type="LinearLR", start_factor=1.0, end_factor=0.0)],
    clip_grad=dict(max_norm=1.0),
)
