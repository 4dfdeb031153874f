"""CamVid, 11 classes, at 480×360 with CIRKD's recipe (arXiv 2204.06986): 40,000 steps of 16 crops of 360×360."""

task = "semantic-segmentation"
benchmark = "camvid-paper"
benchmark_version = 1

_size = (360, 480)
_augment = dict(scale=(0.5, 2.0), size=(360, 360))
data = dict(
    train=dict(type="CamVid", split="train", size=_size, augment=_augment, views=0),
    val=dict(type="CamVid", split="val", size=_size),
    test=dict(type="CamVid", split="test", size=_size),
    batch_size=16,
    eval_batch_size=8,
    num_workers=8,
)
adapter = dict(type="SegmentationAdapter")
metric = dict(type="SegmentationMetric", primary="mIoU")

teacher = dict(type="mmseg", pretrained_backbone=True, num_classes=11, input_size=(3, 360, 360))
student = dict(type="mmseg", pretrained_backbone=True, num_classes=11, input_size=(3, 360, 360))

recipe = dict(
    epochs=1819,  # 40,000 steps: 367 images are 22 batches
    optimizer=dict(type="SGD", lr=0.02, momentum=0.9, weight_decay=1e-4),
    param_scheduler=[dict(type="PolyLR", power=0.9, eta_min=0.0)],
)
