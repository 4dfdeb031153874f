"""Simulated LiDAR scenes, for the demo: a tiny PointPillars teaches one of half its width, within 26 m of the sensor.

The smallest benchmark on point clouds. Not measured yet.
"""

from limbeck.pointcloud.configs._base_.pillars import methods as _methods
from limbeck.pointcloud.configs._base_.pillars import pillars as _pillars
from limbeck.pointcloud.configs._base_.pillars import recipe as _recipe

task = "3d-object-detection"
benchmark = "lidar-scenes-demo"
benchmark_version = 1
pair = "pointpillars16-pointpillars8"
title = "Simulated LiDAR scenes (26 m)"

_range = (0.0, -12.8, -3.0, 25.6, 12.8, 1.0)
_scenes = dict(type="LidarScenes", point_cloud_range=_range)
_grid = dict(point_cloud_range=_range, max_points=10, max_voxels=1000, momentum=0.1)
data = dict(
    train=dict(**_scenes, split="train", count=80),
    val=dict(**_scenes, split="val", count=20),
    test=dict(**_scenes, split="test", count=60),
    batch_size=2,
    eval_batch_size=4,
)
adapter = dict(type="PointCloudAdapter")
metric = dict(type="KittiMetric", primary="bev_ap40")
teacher = _pillars(16, **_grid)
student = _pillars(8, **_grid)
recipe = _recipe(2, 5e-3)
teacher_recipe = _recipe(6, 5e-3)
teacher_tolerance = 1.0
cache = dict(dtype="float16")
_all = _methods(centres=64, neighbours=8)
methods = {name: _all[name] for name in ("CWD", "PointDistiller")}
