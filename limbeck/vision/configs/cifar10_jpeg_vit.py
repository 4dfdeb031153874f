"""CIFAR-10 (JPEG), ResNet-56 → a ViT of three blocks and 64 channels on patches of 4×4: CNN to transformer."""

_base_ = ["./_base_/cifar10_jpeg_tokens.py"]

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
