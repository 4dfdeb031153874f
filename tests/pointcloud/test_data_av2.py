"""Argoverse 2's sweeps: types, heights, and every bad file."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from limbeck.errors import CorruptFile, DataMissing, UnknownName
from limbeck.pointcloud.data.av2 import AV2Sweeps
from limbeck.pointcloud.data.frames import points_in_boxes

DATA = os.environ.get("LIMBECK_DATA")
OBJECTS = [
    dict(type="REGULAR_VEHICLE", group="vehicle", box_lidar=[10, 0, -0.3, 4, 2, 1.5, 0.1]),
    dict(type="BUS", group="vehicle", box_lidar=[20, 5, -0.3, 12, 3, 3, 0]),
    dict(type="BICYCLE", group="cyclist", box_lidar=[5, 5, -0.3, 1.6, 0.5, 1.2, 0]),
    dict(type="PEDESTRIAN", group="pedestrian", box_lidar=[-5, 5, -0.3, 0.6, 0.6, 1.8, 0]),
    dict(type="BOLLARD", group="other", box_lidar=[7, 5, -0.3, 0.3, 0.3, 1, 0]),
]


@pytest.fixture
def root(tmp_path) -> Path:
    write(tmp_path, OBJECTS)
    xyz = np.array([[10, 0.5, 0.25], [-3, 2, 0]], np.float16)
    np.savez(tmp_path / "one.npz", xyz=xyz, intensity=np.array([0, 255], np.uint8))
    return tmp_path


def write(root: Path, objects: list) -> None:
    (root / "frames.json").write_text(json.dumps([dict(id="one", objects=objects)]))


def test_categories_become_kittis_types_and_the_road_goes_down(root):
    sweeps = AV2Sweeps(root)
    assert sweeps.ids == ["one"]
    frame = sweeps.frame("one")
    assert frame.names == ("Car", "Truck", "Cyclist", "Pedestrian", "Misc")
    np.testing.assert_allclose(frame.points, [[10, 0.5, -1.05, 0], [-3, 2, -1.3, 1]], atol=1e-6)
    np.testing.assert_allclose(frame.boxes[:, 2], -1.6, atol=1e-6)
    np.testing.assert_allclose(AV2Sweeps(root, lower=0).frame("one").boxes[:, 2], -0.3, atol=1e-6)
    assert frame.calibration is None
    assert np.isnan(frame.bboxes).all()
    assert set(frame.difficulties().tolist()) == {-1}


def test_bad_sweeps_are_refused(root):
    with pytest.raises(UnknownName, match="unknown sweep 'two'"):
        AV2Sweeps(root).frame("two")
    np.savez(root / "one.npz", xyz=np.full((2, 3), np.nan, np.float16), intensity=np.zeros(2, np.uint8))
    with pytest.raises(CorruptFile, match="not finite"):
        AV2Sweeps(root).frame("one")
    np.savez(root / "one.npz", xyz=np.zeros((2, 2)), intensity=np.zeros(2, np.uint8))
    with pytest.raises(CorruptFile, match=r"are not \(P, 3\)"):
        AV2Sweeps(root).frame("one")
    (root / "one.npz").unlink()
    with pytest.raises(DataMissing, match=r"one.npz is missing"):
        AV2Sweeps(root).frame("one")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(box_lidar=[1, 2, 3]), "do not read"),
        (dict(box_lidar=[1, 2, 3, 0, 1, 1, 0]), "above 0"),
        (dict(group="boat"), "do not read .*boat"),
    ],
)
def test_bad_objects_are_refused(root, change, says):
    write(root, [OBJECTS[3] | change])
    with pytest.raises(CorruptFile, match=says):
        AV2Sweeps(root).frame("one")


@pytest.mark.parametrize("text", ["{", "[1]", '[{"id": 1}]'])
def test_bad_lists_are_refused(root, text):
    (root / "frames.json").write_text(text)
    with pytest.raises(CorruptFile, match="does not list sweeps"):
        AV2Sweeps(root)


def test_absent_list(tmp_path):
    with pytest.raises(DataMissing, match="LIMBECK_DATA/lidar_av2"):
        AV2Sweeps(tmp_path)


@pytest.mark.skipif(DATA is None, reason="LIMBECK_DATA does not name the shared data")
def test_real_sweeps_have_points_in_their_boxes_and_a_road_as_kittis():
    root = Path(str(DATA)) / "lidar_av2"
    sweeps = AV2Sweeps(root)
    listed = {one["id"]: one["objects"] for one in json.loads((root / "frames.json").read_text())}
    assert len(sweeps.ids) == 3
    for key in sweeps.ids:
        frame = sweeps.frame(key)
        counts = points_in_boxes(frame.points, frame.boxes, margin=1e-3).sum(1)
        stated = np.array([one["num_points"] for one in listed[key]])
        assert (np.abs(counts - stated) <= 2 + 0.05 * stated).mean() > 0.95
        near = np.hypot(*frame.points[:, :2].T) < 15
        lowest = np.percentile(frame.points[near, 2], 20)
        assert -2.0 < lowest < -1.2
