"""KITTI, paper tier: SECOND (published: 72.30) → a quarter of it (71.00 alone); PointDistiller 73.20.

Figures are of bird's-eye view; of 3D boxes they are 66.1, 64.7 and 66.2.

Needs spconv. The published config names 256 neighbours and a temperature of 1e-2, which its code does not read: 128, as
here, and no weights by importance at all.
"""

from limbeck.pointcloud.configs._base_.paper_kitti import cyclic as _cyclic
from limbeck.pointcloud.configs._base_.paper_kitti import frames as _frames
from limbeck.pointcloud.configs._base_.paper_kitti import official as _official
from limbeck.pointcloud.paper_models import second as _second

_base_ = ["./_base_/paper_kitti.py"]

pair = "second-second_4x"
title = "KITTI: SECOND → SECOND 4×"
data = _frames((0.0, -40.0, -3.0, 70.4, 40.0, 1.0), 48, counts=(12, 6, 6), min_points=10)
teacher = dict(type="mmdet3d", config=_second(1))
student = dict(type="mmdet3d", config=_second(0.5))
recipe = _cyclic(80, 1.8e-3, clip=10)
methods = {"PointDistiller": _official("backbone[0]", "backbone[1]")}

reported = {"teacher": 72.3, "plain": 71.0, "PointDistiller": 73.2}
