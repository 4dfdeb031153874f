"""Teachers of the pairs on BCCD."""

size = (192, 256)


def lite0(head: str) -> dict:
    """A detector on EfficientNet-Lite 0 with ImageNet weights, its pyramid of 64 channels."""
    shape = dict(num_classes=3, input_size=(3, *size), mean=0.5, std=0.5)
    return dict(type="TimmDetector", model="tf_efficientnet_lite0", pretrained_backbone=True, head=head, **shape)
