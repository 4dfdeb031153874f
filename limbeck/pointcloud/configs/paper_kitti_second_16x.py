"""KITTI, paper tier: SECOND (published: 72.30) → a sixteenth of it (68.30 alone); PointDistiller 71.60.

Figures are of bird's-eye view; of 3D boxes they are 66.1, 59.7 and 62.6.

Needs spconv. Graph features have 32 channels, as in the published code that runs; a comment in it has 16.
"""

from limbeck.pointcloud.configs._base_.paper_kitti import cyclic as _cyclic
from limbeck.pointcloud.configs._base_.paper_kitti import frames as _frames
from limbeck.pointcloud.configs._base_.paper_kitti import official as _official
from limbeck.pointcloud.paper_models import second as _second

_base_ = ["./_base_/paper_kitti.py"]

pair = "second-second_16x"
title = "KITTI: SECOND → SECOND 16×"
data = _frames((0.0, -40.0, -3.0, 70.4, 40.0, 1.0), 48, counts=(12, 6, 6), min_points=10)
teacher = dict(type="mmdet3d", config=_second(1))
student = dict(type="mmdet3d", config=_second(0.25))
recipe = _cyclic(80, 1.8e-3, clip=10)
methods = {"PointDistiller": _official("backbone[0]", "backbone[1]")}

reported = {"teacher": 72.3, "plain": 68.3, "PointDistiller": 71.6}
