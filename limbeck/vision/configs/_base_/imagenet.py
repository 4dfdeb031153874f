"""ImageNet at 224 pixels with the 100-epoch recipe: SGD 0.1 at batch 256, a tenth of it from epochs 30, 60 and 90 on.

A pair's own file adds teacher, student and methods. Teachers come with timm's pretrained weights. Val is 50,000 of the
training images; test is the official validation set, which the published figures are of.
"""

task = "image-classification"
benchmark = "imagenet"
benchmark_version = 1

data = dict(
    train=dict(type="ImageNet", split="train", augment=dict(scale=(0.08, 1.0), flip=True), views=0),
    val=dict(type="ImageNet", split="val"),
    test=dict(type="ImageNet", split="test"),
    batch_size=256,
    num_workers=8,
)
adapter = dict(type="VisionAdapter")
metric = dict(type="ClassificationMetric")

teacher = dict(type="timm", num_classes=1000, pretrained=True)
student = dict(type="timm", num_classes=1000)

recipe = dict(
    epochs=100,
    optimizer=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4),
    param_scheduler=[dict(type="MultiStepLR", milestones=[30, 60, 90], gamma=0.1)],
)
