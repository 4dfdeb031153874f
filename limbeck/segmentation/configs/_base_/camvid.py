"""CamVid at 192×144: the keys that the desk pairs share. Val chooses, test reports, both scored at this size.

Sizes: 367 training images are 45 steps an epoch at batch 8; a student of half a million parameters takes a few minutes
of one core for 30 epochs. It sees eight augmented views of each image, for which its teacher's taps are computed once.
"""

task = "semantic-segmentation"
benchmark = "camvid"
benchmark_version = 1

_size = (144, 192)
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
