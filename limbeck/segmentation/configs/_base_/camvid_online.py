"""What a CNN and a transformer exchange while both are trained; the transformer stands in the teacher's place."""

from limbeck.segmentation.configs._base_.camvid_parts import adamw, kd

names = ("DML", "HFD", "BSD", "CNNViTCollab")
_maps = ["backbone[0]", "decode_head.fusion_conv", "logits"]
_taps = [(tap, tap) for tap in _maps]
_parts = dict(HFD=dict(region=0.0, pixel=0.0), BSD=dict(hfd=0.0), CNNViTCollab={})


def exchanges(peers_pair: str) -> dict:
    """Deep mutual learning (arXiv 1706.00384), and CNN-ViT collaboration by its features, its selection, and both."""
    links: dict[str, dict] = {"DML": kd}
    links |= {name: dict(type="CNNViTCollab", taps=_taps, **options) for name, options in _parts.items()}
    return {
        name: dict(
            members=dict(teacher=dict(type="trained", init="student")),
            optimizers=dict(teacher=adamw(4e-3)),
            companions=dict(teacher=peers_pair),
            cache=False,
            links=[links[name], dict(links[name], teacher="student", student="teacher")],
        )
        for name in names
    }
