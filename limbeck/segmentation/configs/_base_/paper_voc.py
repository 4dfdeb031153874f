"""PASCAL VOC 2012 with the extra labels of SBD and CIRKD's recipe (arXiv 2204.06986): 40,000 steps of 16 crops of 512².

500 of the 10,582 training images are held out as val; test is the official validation set, at the images' own size.
Random resizing starts from a shorter side of 512, as mmsegmentation's.
"""

task = "semantic-segmentation"
benchmark = "voc2012"
benchmark_version = 1

_augment = dict(crop=(512, 512), ratio_range=(0.5, 2.0), cat_max_ratio=1.0, flip=0.5, distort=False)
data = dict(
    train=dict(type="VOC2012", split="train", augment=_augment, views=0),
    val=dict(type="VOC2012", split="val"),
    test=dict(type="VOC2012", split="test"),
    batch_size=16,
    eval_batch_size=1,
    num_workers=8,
)
adapter = dict(type="SegmentationAdapter")
metric = dict(type="SegmentationMetric", primary="mIoU")

teacher = dict(type="mmseg", pretrained_backbone=True, num_classes=21, input_size=(3, 512, 512))
student = dict(type="mmseg", pretrained_backbone=True, num_classes=21, input_size=(3, 512, 512))

recipe = dict(
    epochs=64,  # 40,000 steps: 10,082 images are 630 batches
    optimizer=dict(type="SGD", lr=0.02, momentum=0.9, weight_decay=1e-4),
    param_scheduler=[dict(type="PolyLR", power=0.9, eta_min=0.0)],
)
