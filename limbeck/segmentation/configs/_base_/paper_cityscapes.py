"""Cityscapes with the recipe of CIRKD's table (arXiv 2204.06986): 40,000 steps of 16 crops.

DIST, MasKD and ACAM-KD share it. A pair's own file adds teacher, student and methods. Differences from the code bases:
250 of the 2,975 training images are held out as val, and the last step is taken, not the best on test; test is the
official validation set, which the published val figures are of, in one scale. DIST's and MasKD's scripts and ACAM-KD's
paper have a weight decay of 5e-4, and MasKD's ends at a rate of 1e-4.
"""

task = "semantic-segmentation"
benchmark = "cityscapes"
benchmark_version = 1

_augment = dict(crop=(512, 1024), ratio_range=(0.5, 2.0), cat_max_ratio=1.0, flip=0.5, distort=False)
data = dict(
    train=dict(type="Cityscapes", split="train", augment=_augment, views=0),
    val=dict(type="Cityscapes", split="val"),
    test=dict(type="Cityscapes", split="test"),
    batch_size=16,
    eval_batch_size=1,
    num_workers=8,
)
adapter = dict(type="SegmentationAdapter")
metric = dict(type="SegmentationMetric", primary="mIoU")

teacher = dict(type="mmseg", pretrained_backbone=True, num_classes=19, input_size=(3, 512, 1024))
student = dict(type="mmseg", pretrained_backbone=True, num_classes=19, input_size=(3, 512, 1024))

recipe = dict(
    epochs=236,  # 40,000 steps: 2,725 images are 170 batches
    optimizer=dict(type="SGD", lr=0.02, momentum=0.9, weight_decay=1e-4),
    param_scheduler=[dict(type="PolyLR", power=0.9, eta_min=0.0)],
)
