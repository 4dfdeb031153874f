"""What the ViT and the MLP-Mixer of the cross-family comparison share: three blocks over 8 × 8 tokens."""

_base_ = ["./cifar10_jpeg.py"]

teacher_of = "vision/cifar10_jpeg_cnn"

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
