"""CamVid at 160×120: the keys that the desk pairs share. Val chooses, test reports, both scored at this size.

Sizes: 367 training images are 46 steps an epoch at batch 8; a student of half a million parameters takes two minutes of
one core for 20 epochs. It sees eight augmented views of each image, for which its teacher's taps are computed once.
Learning rates are the best on validation of 1e-3 and 4e-3 (CNN) and of 6e-4, 2e-3, 4e-3 and 8e-3 (transformer) for the
plain student, one run each; every method takes them as they are.
"""

task = "semantic-segmentation"
benchmark = "camvid"
benchmark_version = 1

_size = (120, 160)
_augment = dict(scale=(0.75, 1.5), flip=True)
data = dict(
    train=dict(type="CamVid", split="train", size=_size, augment=_augment, views=8),
    val=dict(type="CamVid", split="val", size=_size),
    test=dict(type="CamVid", split="test", size=_size),
    batch_size=8,
    eval_batch_size=16,
)
teacher_data = dict(train=dict(type="CamVid", split="train", size=_size, augment=_augment, views=0))
adapter = dict(type="SegmentationAdapter")
metric = dict(type="SegmentationMetric", primary="mIoU")
