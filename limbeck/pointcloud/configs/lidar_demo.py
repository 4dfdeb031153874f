"""Simulated LiDAR scenes, for the demo: a PointPillars teaches one of a third of its width, within 20 m of the sensor.

The smallest benchmark on point clouds. Within 20 m a scene has two objects, and half the pillars; a stage of the
networks has one convolution or two.

Chosen on val (60 scenes), no test figure was looked at; 160 scenes, teacher seed 0, students seeds 100 and 101, BEV
AP40. In batches of 2 a teacher of width 16 got 14.3 in 400 steps; in batches of 4, in 320 steps, 12.5 and 27.8 at rates
of 3e-2 and 1.5e-2, and 31.8 at 1.2e-2 with width 24. Beside the last, plain students of width 8 at 3e-2 got 4.0, 14.6
and 17.6 in 4, 5 and 6 epochs; with 5, CWD at the desk's weight 26.0, PointDistiller at weight 1 15.0. For time, 144
scenes were kept.
"""

from limbeck.pointcloud.configs._base_.pillars import methods as _methods
from limbeck.pointcloud.configs._base_.pillars import pillars as _pillars
from limbeck.pointcloud.configs._base_.pillars import recipe as _recipe

task = "3d-object-detection"
benchmark = "lidar-scenes-demo"
benchmark_version = 1
pair = "pointpillars24-pointpillars8"
title = "Simulated LiDAR scenes (20 m)"

_range = (0.0, -10.24, -3.0, 20.48, 10.24, 1.0)
_scenes = dict(type="LidarScenes", point_cloud_range=_range)
_grid = dict(point_cloud_range=_range, max_points=10, max_voxels=1600, layers=(1, 2, 2))
data = dict(
    train=dict(**_scenes, split="train", count=144),
    val=dict(**_scenes, split="val", count=20),
    test=dict(**_scenes, split="test", count=60),
    batch_size=4,
    eval_batch_size=4,
)
adapter = dict(type="PointCloudAdapter")
metric = dict(type="KittiMetric", primary="bev_ap40")
teacher = _pillars(24, **_grid)
student = _pillars(8, **_grid)
recipe = _recipe(5, 3e-2)
teacher_recipe = _recipe(8, 1.2e-2)
teacher_tolerance = 1.0
cache = dict(dtype="float16")
_all = _methods(num_voxels=256, kneighbours=16)
methods = {name: _all[name] for name in ("CWD", "PointDistiller")}
methods["CWD"]["links"][0]["weight"] = 100.0
