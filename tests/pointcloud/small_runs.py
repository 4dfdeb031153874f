"""A pair of tiny detectors on a few simulated scenes, for tests that need a run and not its figures."""

from __future__ import annotations

from typing import Any

from limbeck.engine.config import PairConfig, parse

EXTENT = (0.0, -12.8, -3.0, 25.6, 12.8, 1.0)
STUDENT: dict[str, Any] = dict(
    type="PointPillarsDetector",
    width=4,
    point_cloud_range=EXTENT,
    voxel_size=(0.32, 0.32, 4.0),
    max_points=16,
    max_voxels=2000,
    anchors="coarse",
    score_thr=0.0,  # a detector of one epoch is sure of nothing
    nms_pre=60,
    max_num=12,
)
LINK: dict[str, Any] = dict(type="PointDistiller", num_voxels=50, kneighbours=4, channels=4, temperature=3.0)


def scenes(split: str, count: int = 4) -> dict[str, Any]:
    """A split's config; most frames have an object in range."""
    return dict(type="LidarScenes", split=split, count=count, point_cloud_range=EXTENT)


def lidar_pair(**changes: Any) -> PairConfig:
    """One epoch on four scenes."""
    value = dict(
        task="3d-object-detection",
        benchmark="toy-lidar",
        pair="big-small",
        data=dict({split: scenes(split) for split in ("train", "val", "test")}, batch_size=2, eval_batch_size=2),
        adapter=dict(type="PointCloudAdapter"),
        metric=dict(type="KittiMetric", primary="bev_ap40"),
        student=STUDENT,
        teacher=STUDENT | dict(width=8),
        recipe=dict(epochs=1, optimizer=dict(type="AdamW", lr=1e-3)),
        methods={"PointDistiller": dict(links=[LINK], cache=False)},
        cache=dict(dtype="float16"),
    )
    return parse(PairConfig, value | changes, "made-up pair")
