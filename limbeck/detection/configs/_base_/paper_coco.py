"""COCO with the recipes that the papers share: 1333×800, flipped half of the time, 16 images a batch, SGD.

A pair's own file adds teacher, student and methods. Differences from the code bases: 5,000 of the 118,287 training
images are held out as val, so that as many epochs are 4 % fewer steps; test is val2017, which the published figures are
of; the last step counts. Gradients are clipped at a norm of 35 for plain and every method, as FGD, MGD and MasKD clip;
PKD and CrossKD do not. ACAM-KD, FGD, MGD and MasKD start the student from its teacher's neck and head where both are of
one kind, MasKD's Faster R-CNN and FCOS and MGD's Faster R-CNN excepted; the engine has no option for it, so no student
does here.
"""


def sgd(epochs: int, lr: float, *, warm_up: str = "LinearLR", start: float = 0.001) -> dict:
    """A recipe of 12 epochs (1x) or 24 (2x): the rate rises over 500 steps and falls to a tenth twice."""
    first, second = {12: (8, 11), 24: (16, 22)}[epochs]
    factor = dict(start_factor=start) if warm_up == "LinearLR" else dict(factor=start)
    return dict(
        epochs=epochs,
        optimizer=dict(type="SGD", lr=lr, momentum=0.9, weight_decay=1e-4),
        param_scheduler=[
            dict(type=warm_up, by_epoch=False, begin=0, end=500, **factor),
            dict(type="MultiStepLR", milestones=[first, second], gamma=0.1),
        ],
        clip_grad=dict(max_norm=35, norm_type=2),
    )


task = "object-detection"
benchmark = "coco"
benchmark_version = 1

data = dict(
    train=dict(type="COCO2017", split="train", augment=dict(flip=0.5), views=0),
    val=dict(type="COCO2017", split="val"),
    test=dict(type="COCO2017", split="test"),
    batch_size=16,
    eval_batch_size=1,
    num_workers=8,
)
adapter = dict(type="DetectionAdapter")
metric = dict(type="DetectionMetric", primary="mAP")

teacher = dict(type="mmdet", pretrained_backbone=True, num_classes=80, input_size=(3, 800, 1344))
student = dict(type="mmdet", pretrained_backbone=True, num_classes=80, input_size=(3, 800, 1344))

recipe = sgd(24, 0.01)
