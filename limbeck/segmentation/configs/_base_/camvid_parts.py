"""Networks, recipe and links that the desk pairs on CamVid share.

Every member has the same class weights, 1 / ln(1.02 + share of pixels) of the training split, scaled so that their mean
over its pixels is 1: without them the five small classes are hardly learnt in so few steps.
"""

SIZE = (120, 160)
_shape = dict(
    num_classes=11,
    input_size=(3, *SIZE),
    mean=0.5,
    std=0.5,  # one tensor serves teacher and student
    class_weight=(0.80, 0.61, 4.79, 0.47, 2.21, 1.25, 4.51, 4.57, 1.83, 5.43, 6.27),
)
lite0 = dict(
    type="TimmSegmentor",
    model="tf_efficientnet_lite0",
    head="deeplabv3plus",
    channels=96,
    pretrained_backbone=True,
    **_shape,
)
mit32 = dict(type="SegFormer", width=32, num_layers=(2, 2, 2, 2), channels=128, **_shape)
mit16 = dict(type="SegFormer", width=16, num_layers=(1, 1, 1, 1), channels=64, **_shape)
mobilenet = dict(type="MobileNetV2Segmentor", width=0.35, channels=32, **_shape)

logits = [("logits", "logits")]
stages = [(f"backbone[{i}]", f"backbone[{i}]") for i in range(4)]
kd = dict(type="KD", weight=1.0, temperature=1.0)  # as in the code of CIRKD, which adds it to its peers too
cwd_logits = dict(type="CWD", taps=logits, temperature=4.0, weight=3.0)


def adamw(lr: float) -> dict:
    """The optimiser of a member."""
    return dict(type="AdamW", lr=lr, weight_decay=0.01)


def recipe(lr: float, epochs: int = 20, **changes) -> dict:
    """One epoch of warm-up, then polynomial decay to 0."""
    warm_up = dict(type="LinearLR", start_factor=0.02, end=1)
    decay = dict(type="PolyLR", power=0.9, eta_min=0.0, begin=1)
    return dict(epochs=epochs, optimizer=adamw(lr), param_scheduler=[warm_up, decay], **changes)


def cwd(teacher: str, student: str) -> list:
    """CWD on the map before the classifier and on the logits, as in the code of CIRKD, without its adversarial term."""
    return [
        kd,
        dict(type="CWD", taps=[(teacher, student)], temperature=4.0, weight=50.0),
        cwd_logits,
    ]
