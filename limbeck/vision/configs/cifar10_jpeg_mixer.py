"""CIFAR-10 (JPEG), ResNet-56 → an MLP-Mixer of three blocks and 64 channels on patches of 4×4: CNN to MLP."""

_base_ = ["./_base_/cifar10_jpeg_tokens.py"]

pair = "resnet56-mixer"
title = "CIFAR-10 (JPEG), 4,000 training images: CNN → MLP-Mixer"
student = dict(
    type="MLPMixer",
    img_size=32,
    patch_size=4,
    num_blocks=3,
    embed_dim=64,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)

# The Mixer's head starts at zero: equal logits have no direction to standardise until cross entropy has moved it.
methods = {"KD+LS": dict(links=[dict(type="KD", weight=9.0, temperature=2.0, standardise=True, may_be_zero=True)])}
