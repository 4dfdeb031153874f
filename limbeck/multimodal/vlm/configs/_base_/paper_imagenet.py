"""ImageNet with 1 or 10 % of its labels, 13 or 128 a class; a CLIP student starts both heads from its own text."""

task = "vlm-classification"
benchmark_version = 1
_crop = dict(scale=(0.5, 1.0), flip=True)
_images = dict(type="ImageNet", augment=_crop, views=0)
_names = dict(type="ImageNet", split="val")
data = dict(
    train=dict(type="PartlyLabelled", split="train", of=_images, shots=13, shots_seed="run"),
    val=dict(type="ImageNet", split="val"),
    test=dict(type="ImageNet", split="test"),
    batch_size=256,
    unlabelled_batch_size=256,
    steps=4900,  # one pass over the unlabelled images
    num_workers=8,
)
adapter = dict(type="VLMAdapter", joint_batch=True)  # α = β = 0.5, fixed
metric = dict(type="DualHeadMetric")
teacher = dict(
    type="ZeroShot", model="ViT-H-14-378-quickgelu", tag="dfn5b", classes=_names, templates="imagenet", pretrained=True
)
recipe = dict(
    epochs=32,
    optimizer=dict(type="AdamW", lr=5e-5, weight_decay=0.05),
    param_scheduler=[dict(type="LinearLR", start_factor=0.01, end=1), dict(type="CosineAnnealingLR", begin=1)],
)
teacher_recipe = dict(epochs=0)


def tower(model: str) -> dict:
    """A dual-head student on a CLIP image tower."""
    return dict(
        type="DualHead",
        backbone=dict(type="CLIPTower", model=model, tag="openai", classes=_names, templates="imagenet"),
        num_classes=1000,
        init="text",
        beta=0.5,
    )


def semi(student: dict) -> dict:
    """The script's loss: the three terms, weighted alike."""
    return {"DHO": dict(student=dict(student, kd_head="cosine"), links=[dict(type="DHO", weight=1.0)])}
