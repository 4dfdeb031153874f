"""CIFAR-10 (JPEG), ResNet-56 → a ViT of three blocks and 64 channels on patches of 4×4: CNN to transformer."""

_base_ = ["./_base_/cifar10_jpeg.py"]

teacher_of = "vision/cifar10_jpeg_cnn"
pair = "resnet56-vit"
title = "CIFAR-10 (JPEG), 4,000 training images: CNN → ViT"
student = dict(
    type="timm",
    model="vit_tiny_patch16_224",
    img_size=32,
    patch_size=4,
    depth=3,
    embed_dim=64,
    num_heads=2,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)

methods = dict(
    RKD=dict(links=[dict(type="RKD", weight=0.01, taps=[("global_pool", "head_drop")])]),
    SPKD=dict(links=[dict(type="SPKD", weight=300.0, taps=[("layer3", "norm")])]),
    FitNet=dict(links=[dict(type="FitNet", weight=1.0, taps=[("layer3", "blocks.1")])]),
    OFAKD=dict(
        links=[
            dict(
                type="OFAKD",
                weight=1.0,
                heads=2,
                taps=[("logits", "blocks.0"), ("logits", "blocks.1"), ("logits", "blocks.2"), ("logits", "logits")],
            )
        ]
    ),
)
