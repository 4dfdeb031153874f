"""The methods of the papers on COCO, by kind of detector, with each one's published taps and weights.

Where nobody published numbers for a kind, those of RetinaNet or of all one-stage detectors stand in, which is our
assumption: MGD, ACAM-KD and PKD alone for FCOS and GFL; MasKD for GFL; CWD and FitNet for FCOS and RepPoints; DIST for
FCOS, GFL and RepPoints. MGD's and DIST's numbers, FitNet's for RetinaNet and Faster R-CNN, PKD's for one-stage
detectors, and FGD's and MasKD's for RepPoints were published with other teachers than a ResNet-101; FitNet's (but for
GFL) and DIST's as the parts of one method. CWD's and PKD's are MMRazor's.

Left out, as the engine has no tap for it: MasKD's regression term on Faster R-CNN (outputs for the student's own
regions) and RepPoints (points that no adapter offers), and DIST on Faster R-CNN's regions. Left out too: the imitation
of features in LD's code.
"""

_STRENGTHS = ("foreground", "background", "attention", "relation")
_ONE_STAGE = ("retinanet", "fcos", "reppoints", "gfl")
_FGD = {
    "retinanet": (0.5, (1e-3, 5e-4, 5e-4, 5e-6)),
    "gfl": (0.5, (1e-3, 5e-4, 5e-4, 5e-6)),
    "fcos": (0.8, (1.6e-3, 8e-4, 8e-4, 8e-6)),
    "reppoints": (0.5, (1.6e-3, 8e-4, 8e-4, 8e-6)),
    "faster_rcnn": (0.5, (5e-5, 2.5e-5, 5e-5, 5e-7)),
}
# Weight, and when masks are customised: after 7,000, 5,000 or 7,330 steps, as a share of the run.
_MASKD = {
    "retinanet": (7.0, 0.04),
    "gfl": (7.0, 0.08),
    "fcos": (10.0, 0.028),
    "reppoints": (10.0, 0.028),
    "faster_rcnn": (1.0, 0.042),
}
_PKD_BESIDE_CROSSKD = {"retinanet": 2.0, "fcos": 2.0, "gfl": 6.0}


def _levels(name: str, count: int = 5) -> list:
    return [(f"{name}[{i}]", f"{name}[{i}]") for i in range(count)]


def coco_methods(kind: str) -> dict:
    """Method configs by name, for teacher and student of one kind.

    Args:
        kind: 'retinanet', 'faster_rcnn', 'fcos', 'reppoints' or 'gfl'.
    """
    one_stage = kind in _ONE_STAGE
    neck, logits, boxes = _levels("neck"), _levels("cls_logits"), _levels("box_outputs")
    convs = [(f"neck.fpn_convs.{i}.conv", f"neck.fpn_convs.{i}.conv") for i in range(5 if one_stage else 4)]
    temperature, strengths = _FGD[kind]
    generation = dict(weight=2e-5, ratio=0.65) if one_stage else dict(weight=5e-7, ratio=0.45)
    weight, after = _MASKD[kind]
    maskd = dict(type="MasKD", form="detection", taps=neck, weight=weight, customise_after=after)
    if kind == "retinanet":
        maskd |= dict(taps=[*neck, *boxes], regression=[1.0 / weight] * 5)
    # MMRazor's figure for GFL is of logits.
    channel = dict(type="CWD", taps=logits if kind == "gfl" else neck, temperature=1.0, weight=10.0)
    pkd = dict(type="PKD", taps=neck[:4], weight=10.0 if one_stage else 6.0)
    methods = {
        "FitNet": [dict(type="FitNet", taps=neck, weight=1.0, bridge=dict(norm_act=False))],
        "CWD": [channel],
        "FGD": [dict(type="FGD", taps=convs, temperature=temperature, **dict(zip(_STRENGTHS, strengths)))],
        "MGD": [dict(type="MGD", taps=convs, **generation)],
        "PKD": [pkd],
        "MasKD": [maskd],
        "ACAM-KD": [dict(type="ACAMKD", taps=neck, weight=1.0)],
    }
    if one_stage:
        methods["DIST"] = [dict(type="DIST", taps=logits, weight=1.0, temperature=1.0, activation="sigmoid")]
    if kind == "gfl":
        methods["LD"] = [dict(type="LD", taps=[*logits, *boxes])]
    if kind in _PKD_BESIDE_CROSSKD:
        cross = dict(type="CrossKD", taps=neck)
        methods["CrossKD"] = [cross]
        methods["CrossKD+PKD"] = [cross, dict(type="PKD", taps=neck, weight=_PKD_BESIDE_CROSSKD[kind])]
    return {name: dict(links=links) for name, links in methods.items()}
