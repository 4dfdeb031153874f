"""The exchange of a CNN and a transformer without a teacher, after Zhu et al. (ICCV 2023, arXiv 2307.12574).

No code and no table of the paper could be read: recipe, networks, taps and weights are our assumption, and no figure is
printed. The CNN is the pair's student; the transformer, its peer, stands in the teacher's place and is trained with it.
"""

from limbeck.segmentation.configs._base_.paper_models import deeplabv3_mobilenetv2, segformer

_forth = [("backbone[0]", "backbone[0]"), ("decode_head.fusion_conv", "decode_head.bottleneck"), ("logits", "logits")]
_back = [(mine, peers) for peers, mine in _forth]
SGD = dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=5e-4)
ADAMW = dict(type="AdamW", lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01)


def recipe(epochs: int, optimizer: dict) -> dict:
    """Of one member alone; both fall to 0 by the same polynomial."""
    return dict(epochs=epochs, optimizer=optimizer, param_scheduler=[dict(type="PolyLR", power=0.9, eta_min=0.0)])


def cnn() -> dict:
    """DeepLabV3-MobileNetV2."""
    return deeplabv3_mobilenetv2()


def vit() -> dict:
    """SegFormer-B0."""
    return segformer("b0", channels=256)


def exchange(peers_pair: str) -> dict:
    """The method's config; `peers_pair` names the pair that has the peer's record."""
    return dict(
        members=dict(teacher=dict(type="trained", init="student")),
        optimizers=dict(teacher=ADAMW),
        companions=dict(teacher=peers_pair),
        cache=False,
        links=[
            dict(type="CNNViTCollab", teacher="teacher", student="student", taps=_forth),
            dict(type="CNNViTCollab", teacher="student", student="teacher", taps=_back),
        ],
    )
