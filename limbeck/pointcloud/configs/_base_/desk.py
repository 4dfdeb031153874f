"""What the desk pairs on point clouds share: simulated scenes, PointPillars of width 64 as teacher, recipes, methods.

Nothing is measured yet: recipe, weights and sizes of the methods are a first guess. Scenes are simulated, so that
figures on them compare methods and say nothing of real streets.
"""

from limbeck.pointcloud.configs._base_.pillars import methods as _methods
from limbeck.pointcloud.configs._base_.pillars import pillars as _pillars
from limbeck.pointcloud.configs._base_.pillars import recipe as _recipe

task = "3d-object-detection"
benchmark = "lidar-scenes"
benchmark_version = 1

_scenes = dict(type="LidarScenes")
_augment = dict(flip=0.5, scale=(0.95, 1.05))
data = dict(
    train=dict(**_scenes, split="train", augment=_augment, views=4),
    val=dict(**_scenes, split="val"),
    test=dict(**_scenes, split="test"),
    batch_size=4,
    eval_batch_size=4,
)
teacher_data = dict(train=dict(**_scenes, split="train", augment=_augment, views=0))
adapter = dict(type="PointCloudAdapter")
metric = dict(type="KittiMetric", primary="bev_ap40")
teacher = _pillars(64)
recipe = _recipe(8)
teacher_recipe = _recipe(20)
teacher_tolerance = 1.0
cache = dict(dtype="float16")
methods = _methods()
