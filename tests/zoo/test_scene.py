"""Pages of clouds in 3D: edges of boxes, what pointing at one says, and that the page needs no other file."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from limbeck.pointcloud.boxes import bev_corners
from limbeck.zoo.lidar import LidarPrediction
from limbeck.zoo.scene import wireframe

BOX = np.array([12.0, 3.0, -1.7, 4.0, 1.6, 1.5, 0.6], np.float32)
CLOUD = np.array([[10.0, 1.0, -1.5, 0.5], [12.0, 3.0, 0.0, 0.1], [900.0, 0, 0, 0.2]], np.float32)


def prediction(**changes: Any) -> LidarPrediction:
    values: dict[str, Any] = dict(
        source="odd<b>name.bin",
        points=3,
        seen=2,
        boxes=BOX[None],
        labels=("Car",),
        scores=np.array([0.91], np.float32),
        classes=("Pedestrian", "Car"),
        palette=((213, 94, 0), (0, 114, 178)),
        extent=(0.0, -20.0, -3.0, 40.0, 20.0, 1.0),
        cloud=CLOUD,
    )
    return LidarPrediction(**values | changes)


@pytest.mark.parametrize("yaw", [0.0, 0.6, -2.5])
def test_edges_join_the_corners(yaw: float) -> None:
    box = BOX.astype(float)
    box[6] = yaw
    lines = wireframe(box).reshape(-1, 3, 3)
    assert np.isnan(lines[:, 2]).all()
    ends = lines[:, :2]
    flat = bev_corners(box[None])[0]
    corners = [[*xy, z] for z in (box[2], box[2] + box[5]) for xy in flat]
    for end in ends.reshape(-1, 3):
        assert min(np.abs(np.subtract(corners, end)).sum(1)) < 1e-9
    lengths = sorted(np.linalg.norm(ends[:12, 0] - ends[:12, 1], axis=1))
    np.testing.assert_allclose(lengths, sorted([4.0, 1.6, 1.5] * 4), rtol=1e-6)
    # the cross lies in the front: half a length ahead of the middle
    ahead = (ends[12:] - box[:3])[..., :2] @ [np.cos(yaw), np.sin(yaw)]
    np.testing.assert_allclose(ahead, 2.0, rtol=1e-6)


def test_page_is_whole_and_says_what_boxes_are() -> None:
    text = prediction().page()
    for part in ("Car: 1", "0.91", "x 12.00, y 3.00, z -1.70 m (bottom)", "4.00 × 1.60 × 1.50 m, yaw 34°"):
        assert json.dumps(part)[1:-1] in text
    assert "<title>odd&lt;b&gt;name.bin: 1 object</title>" in text
    assert "odd<b>name" not in text
    assert not re.findall(r"<script[^>]*\bsrc=|<link\b|<iframe\b", text)


def test_points_out_of_range_are_not_on_the_page() -> None:
    from limbeck.zoo import scene

    trace = scene._points(prediction())
    assert trace["x"].tolist() == [10.0, 12.0]
    assert scene._points(prediction(cloud=np.repeat(CLOUD[:1], 70_000, 0), points=70_000))["x"].size == 35_000


def test_picture_has_the_box_in_its_colour_and_a_legend_below() -> None:
    picture = np.asarray(prediction().overlay())
    assert picture.shape[1] == 800
    assert picture.shape[0] > 800
    blue = (np.abs(picture[:800].astype(int) - (0, 114, 178)) < 40).all(2)
    rows, columns = np.nonzero(blue)
    corners = bev_corners(BOX[None])[0]
    seen = (40 - corners[:, 0].max()) * 20, (20 - corners[:, 1].max()) * 20
    assert abs(rows[blue[rows, columns]].max() - (40 - corners[:, 0].min()) * 20) < 4
    assert rows.min() < seen[0] + 4
    assert abs(columns.min() - seen[1]) < 20
    assert (np.abs(picture[800:].astype(int) - (0, 114, 178)) < 5).all(2).any()
