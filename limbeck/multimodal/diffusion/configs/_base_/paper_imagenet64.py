"""ImageNet at 64×64 pixels, class-conditional, without guidance: the network of ADM (arXiv 2105.05233), the paper tier.

The network and the teacher's recipe are those of `imagenet64_base` in the official code of progressive distillation
(arXiv 2202.00512); diffusers builds the same network for the consistency models of openai (arXiv 2303.01469). T is
5,120, which both the 1,024 steps of the former and the 40 intervals of the latter divide.

ASSUMPTION: networks predict v, where the official ones predict x0 and ε together, or are EDM's; the cosine schedule
serves all methods. The teacher has as many updates as all ten halvings, for the code does not say how many it had.
"""

task = "image-generation"
benchmark = "diffusion-imagenet64"
benchmark_version = 1

_classes = [str(k) for k in range(1000)]
# The shorter side becomes 64 pixels, and the middle is cut out: the official square crop, resized with smoothing.
_images = dict(type="ImageNet", split="train", size=64, crop_pct=1.0)
data = dict(
    train=dict(_images, augment=dict(type="ShiftFlip", flip=True), views=0),
    val=dict(type="SampleRequests", classes=_classes, count=5000, split="val", name="imagenet"),
    test=dict(type="SampleRequests", classes=_classes, count=50_000, split="test", name="imagenet"),
    batch_size=2048,
    eval_batch_size=500,
    num_workers=16,
)
adapter = dict(type="DiffusionAdapter", drop_labels=0.0)
metric = dict(
    type="FIDMetric",
    primary="FID",
    higher_is_better=False,
    options=dict(reference=dict(_images, limit=50_000)),
)


def net(dropout: float) -> dict:
    """The U-Net of 295.9 million weights."""
    return dict(
        type="Denoiser",
        network=dict(
            type="UNet2DModel",
            block_out_channels=(192, 384, 576, 768),
            layers_per_block=3,
            norm_num_groups=32,
            attn_norm_num_groups=32,
            attention_head_dim=64,
            down_block_types=("ResnetDownsampleBlock2D", *("AttnDownBlock2D",) * 3),
            up_block_types=(*("AttnUpBlock2D",) * 3, "ResnetUpsampleBlock2D"),
            downsample_type="resnet",
            upsample_type="resnet",
            resnet_time_scale_shift="scale_shift",
            dropout=dropout,
        ),
        schedule=dict(type="cosine", steps=5120),
        num_classes=1000,
        image_size=64,
        channels=3,
    )


teacher = dict(net(dropout=0.1), sampler=dict(steps=1024))
student = dict(net(dropout=0.0), sampler=dict(steps=1))
teacher_recipe = dict(
    epochs=832,  # of 601 updates: 500,000
    optimizer=dict(type="Adam", lr=3e-4),
    param_scheduler=[dict(type="LinearLR", start_factor=0.001, by_epoch=False, end=1000)],
    clip_grad=dict(max_norm=1.0),
)


def halved(steps: int) -> tuple[dict, dict, dict]:
    """Student, recipe and methods of progressive distillation from 1,024 steps (`imagenet64_distill`).

    83 epochs of 601 updates a halving, where the code has 50,000 updates.
    """
    halvings = (1024 // steps).bit_length() - 1
    recipe = dict(
        epochs=83 * halvings,
        optimizer=dict(type="Adam", lr=1e-4),
        param_scheduler=[dict(type="LinearLR", start_factor=1.0, end_factor=0.0)],
        clip_grad=dict(max_norm=1.0),
    )
    link = dict(type="ProgressiveDistillation", steps=steps, loss_weight="snr_trunc")
    methods = {"PD": dict(task_weight=0.0, links=[link], loop=dict(type="Halving", start=1024))}
    return dict(sampler=dict(steps=steps)), recipe, methods


def requests(count: int) -> dict:
    """Training data without images, for the methods that need none."""
    return dict(type="SampleRequests", classes=_classes, count=count, split="train", name="imagenet")
