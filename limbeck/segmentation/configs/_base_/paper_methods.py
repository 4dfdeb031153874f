"""CIRKD's table (arXiv 2204.06986) with its weights, and DIST, MasKD and ACAM-KD, for CNNs at output stride 8.

CIRKD's code adds pixel KD of weight 1 to its own method and to SKD, IFVD and CWD, and to these three an adversarial
term of weight 0.001. Ignored pixels count in all terms. ACAM-KD (arXiv 2503.06307), published on Cityscapes alone, has
as many masks as classes.
"""

_FEATURE = [("decode_head.bottleneck", "decode_head.bottleneck")]
_LOGITS, _AUXILIARY = [("logits", "logits")], [("aux_logits", "aux_logits")]


def cnn_methods(classes: int, *, auxiliary: bool, memory: float = 0.1) -> dict:
    """Method configs by name.

    Args:
        auxiliary: both sides have an auxiliary head, which DIST and MasKD distil with weight 0.4.
        memory: weight of CIRKD's memory terms.
    """
    kd = dict(type="KD", weight=1.0, temperature=1.0)
    adversarial = dict(type="SKD", taps=_LOGITS, pair_weight=0.0, holistic=True)
    both = [*_LOGITS, *_AUXILIARY] if auxiliary else _LOGITS
    dist = [dict(type="DIST", taps=_LOGITS, weight=1.0, temperature=1.0)]
    if auxiliary:
        dist.append(dict(type="DIST", taps=_AUXILIARY, weight=0.4, temperature=1.0))
    cirkd = dict(
        type="CIRKD",
        taps=_FEATURE,
        classes=classes,
        pixel_weight=memory,
        region_weight=memory,
        max_positions=None,
        max_anchors=None,
    )
    return {
        "KD": dict(links=[kd]),
        "SKD": dict(links=[kd, dict(type="SKD", taps=[*_FEATURE, *_LOGITS], holistic=True)]),
        "IFVD": dict(links=[kd, dict(type="IFVD", taps=_FEATURE, weight=20.0), adversarial]),
        "CWD": dict(
            links=[
                kd,
                dict(type="CWD", taps=_FEATURE, temperature=4.0, weight=50.0),
                dict(type="CWD", taps=_LOGITS, temperature=4.0, weight=3.0),
                adversarial,
            ]
        ),
        "CIRKD": dict(links=[kd, cirkd]),
        "DIST": dict(links=dist),
        "MasKD": dict(links=[dict(type="MasKD", taps=both)]),
        "ACAM-KD": dict(links=[dict(type="ACAMKD", form="segmentation", taps=_LOGITS, count=classes, weight=1.0)]),
    }
