"""What the desk pairs of detection share: a GFL detector of two widths, a recipe, and every method at desk weights.

Pyramids are on strides 8 to 64, the teacher's of 64 channels and the student's of 24, under heads of two convolutions.
Weights are the papers' times the factors by which the losses shrink with fewer channels and smaller maps (FGD 4, its
attention 10, its relation and MGD 87); none was tuned.
"""

_levels = range(4)
neck = [(f"neck[{i}]", f"neck[{i}]") for i in _levels]
before_norm = [(f"neck.fpn_convs.{i}.conv", f"neck.fpn_convs.{i}.conv") for i in _levels]
logits = [(f"cls_logits[{i}]", f"cls_logits[{i}]") for i in _levels]
boxes = [(f"box_outputs[{i}]", f"box_outputs[{i}]") for i in _levels]
_stage1 = dict(stage1_iterations=300, stage1_batch_size=8)


def methods(variance: float = 1.0) -> dict:
    """Every method, by name.

    Args:
        variance: of the teacher's maps; divides the weights of losses that are squares of their differences.
    """
    fgd = dict(foreground=4e-3 / variance, background=2e-3 / variance, attention=5e-3, relation=87 * 5e-6 / variance)
    links = {
        "FitNet": dict(type="FitNet", taps=neck, weight=1.0 / variance, bridge=dict(norm_act=False)),
        "FGD": dict(type="FGD", taps=before_norm, **fgd),
        "MGD": dict(type="MGD", taps=before_norm, weight=87 * 2e-5 / variance),
        "CWD": dict(type="CWD", taps=neck, temperature=1.0, weight=10.0),
        "PKD": dict(type="PKD", taps=neck, weight=6.0),
        "DIST": dict(type="DIST", taps=logits, weight=1.0, temperature=1.0, activation="sigmoid"),
        "LD": dict(type="LD", taps=[*logits, *boxes], normalise=True),
        "CrossKD": dict(type="CrossKD", taps=neck),
        "MasKD": dict(type="MasKD", form="detection", taps=neck, weight=1.0 / variance, **_stage1),
        "ACAM-KD": dict(type="ACAMKD", taps=neck, max_tokens=256, weight=1.0 / variance, **_stage1),
    }
    return {name: dict(links=[link]) for name, link in links.items()}


def student(num_classes: int, size: tuple[int, int], **changes) -> dict:
    """GFL on a ResNet-18 of a sixth of its width, under a pyramid and a head of 24 channels; random weights."""
    shape = dict(num_classes=num_classes, input_size=(3, *size), mean=0.5, std=0.5)
    return dict(type="ResNetDetector", depth=18, base_channels=10, head="gfl", channels=24, **shape, **changes)


def recipe(epochs: int, lr: float = 1e-3) -> dict:
    """AdamW; one epoch of warm-up, then cosine decay."""
    return dict(
        epochs=epochs,
        optimizer=dict(type="AdamW", lr=lr, weight_decay=0.01),
        param_scheduler=[dict(type="LinearLR", start_factor=0.02, end=1), dict(type="CosineAnnealingLR", begin=1)],
    )
