"""KITTI, paper tier: PointRCNN (published: 75.30) → an eighth of it (74.10 alone); PointDistiller 75.10.

Figures are of bird's-eye view; of 3D boxes they are 70.9, 68.6 and 69.6.

The 16,384 points of a cloud are drawn anew for every augmented view in training, and always the same in evaluation.
A cloud with fewer has each of them once, then some again, where the published pipeline draws all of them by chance.
"""

from limbeck.pointcloud.configs._base_.paper_kitti import cyclic as _cyclic
from limbeck.pointcloud.configs._base_.paper_kitti import frames as _frames
from limbeck.pointcloud.configs._base_.paper_kitti import official as _official
from limbeck.pointcloud.paper_models import pointrcnn as _pointrcnn

_base_ = ["./_base_/paper_kitti.py"]

pair = "pointrcnn-pointrcnn_8x"
title = "KITTI: PointRCNN → PointRCNN 8×"
_range = (0.0, -40.0, -3.0, 70.4, 40.0, 1.0)
_points = dict(point_cloud_range=_range, count=16384, far=40.0)
data = _frames(_range, 16, counts=(20, 15, 15))
teacher = dict(type="mmdet3d", config=_pointrcnn("full"), points=_points)
student = dict(type="mmdet3d", config=_pointrcnn("8x"), points=_points)
recipe = _cyclic(160, 1e-3, clip=10, betas=(0.95, 0.85))
methods = {"PointDistiller": _official("fp_features")}

reported = {"teacher": 75.3, "plain": 74.1, "PointDistiller": 75.1}
