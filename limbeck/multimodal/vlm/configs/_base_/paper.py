"""Parts of the paper tier: DHO (arXiv 2505.07675) and PCoreSet (arXiv 2506.00910) at their published settings.

Differences: crops are resized bilinearly for each member; validation sees CoOp's whole val split.
"""

from limbeck.multimodal.vlm.configs._base_.parts import active as _active_methods
from limbeck.multimodal.vlm.configs._base_.parts import few_labels as _few_labels

_CROP = dict(scale=(0.5, 1.0), flip=True)
ADAMW = dict(type="AdamW", lr=1e-3, weight_decay=0.01)


def linear(epochs: int) -> list[dict]:
    """Warm-up over a tenth of the epochs, then down to 0, both linear."""
    first = epochs // 10
    return [
        dict(type="LinearLR", start_factor=1e-4, end=first),
        dict(type="LinearLR", start_factor=1.0, end_factor=0.0, begin=first),
    ]


def few_shot(kind: str, templates: str, num_classes: int, *, shots: int = 16) -> dict:
    """A small set with a zero-shot CLIP ResNet-50 as teacher and a ResNet-18 as student: 200 passes over the labels.

    Args:
        kind: registered data set. templates: of its prompts.
    """
    images = dict(type=kind, augment=_CROP, views=0)
    student = dict(
        type="DualHead",
        backbone=dict(type="timm", model="resnet18", pretrained=True),
        num_classes=num_classes,
    )
    return dict(
        data=dict(
            train=dict(type="PartlyLabelled", split="train", of=images, shots=shots, shots_seed="run"),
            val=dict(type=kind, split="val"),
            test=dict(type=kind, split="test"),
            batch_size=64,
            unlabelled_batch_size=64,
            num_workers=8,
        ),
        teacher=dict(
            type="ZeroShot",
            model="RN50",
            tag="openai",
            classes=dict(type=kind, split="train"),
            templates=templates,
            pretrained=True,
        ),
        student=student,
        methods=_few_labels(student),
    )


def rounds(kind: str, templates: str, num_classes: int) -> dict:
    """The same data, teacher and student in 15 rounds of one image a class; 200 passes a round, as one epoch."""
    pair = few_shot(kind, templates, num_classes, shots=1)
    return pair | dict(methods=_active_methods(pair["student"]))
