"""Simulated LiDAR scenes: PointPillars teaches one with a sixteenth of its parameters and multiply-adds."""

from limbeck.pointcloud.configs._base_.pillars import pillars as _pillars

_base_ = ["./_base_/desk.py"]

pair = "pointpillars64-pointpillars16"
title = "Simulated LiDAR scenes: PointPillars 64 → 16 (16x)"
teacher_of = "pointcloud/lidar_4x"
student = _pillars(16)
