"""Digits of 8×8 pixels, class-conditional: data, networks and recipe that students of every number of steps share."""

task = "image-generation"
benchmark = "diffusion-digits"
benchmark_version = 1

_classes = [str(k) for k in range(10)]
data = dict(
    train=dict(type="Digits", split="train"),
    val=dict(type="SampleRequests", classes=_classes, count=500, split="val", name="digits"),
    test=dict(type="SampleRequests", classes=_classes, count=1000, split="test", name="digits"),
    batch_size=64,
    eval_batch_size=250,
)
_requests = dict(type="SampleRequests", classes=_classes, count=1070, split="train", name="digits")
adapter = dict(type="DiffusionAdapter")
metric = dict(
    type="GenerationMetric",
    primary="FD-digits",
    higher_is_better=False,
    options=dict(features="digits"),
)
_net = dict(
    type="Denoiser",
    network=dict(type="UNet2DModel", block_out_channels=(32, 64), attention="none"),
    num_classes=10,
    image_size=8,
)
teacher = dict(_net, sampler=dict(steps=50, guidance=1.5))
student = dict(_net, sampler=dict(steps=1))
teacher_recipe = dict(
    epochs=120,
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.0),
    param_scheduler=[
        dict(type="LinearLR", start_factor=0.01, end=1),
        dict(type="CosineAnnealingLR", begin=1),
    ],
    clip_grad=dict(max_norm=1.0),
)
recipe = dict(
    epochs=60,
    optimizer=dict(type="AdamW", lr=5e-4, weight_decay=0.0),
    param_scheduler=[dict(type="LinearLR", start_factor=1.0, end_factor=0.0)],
    clip_grad=dict(max_norm=1.0),
)
