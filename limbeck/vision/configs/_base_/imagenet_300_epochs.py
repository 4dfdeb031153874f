"""`imagenet` with the recipe of transformer and mixer students: AdamW for 300 epochs, 20 of them warm-up.

The authors' RandAugment, mixup, CutMix and random erasing are not part of it, so expect less than their figures.
"""

_base_ = ["./imagenet.py"]

data = dict(batch_size=1024)
recipe = dict(
    epochs=300,
    optimizer=dict(_delete_=True, type="AdamW", lr=5e-4, weight_decay=0.05),
    param_scheduler=[
        dict(type="LinearLR", start_factor=1e-3, begin=0, end=20),
        dict(type="CosineAnnealingLR", begin=20, eta_min=1e-5),
    ],
    clip_grad=dict(max_norm=5.0),
)
