"""Layouts: nothing overlaps, and what is drawn is spread as the table and KITTI's labels are."""

import json
import os
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from shapely import affinity
from shapely.geometry import Polygon
from shapely.geometry import box as rectangle

from limbeck.errors import CorruptFile, DataMissing, UnknownName
from limbeck.pointcloud.data.frames import TYPES
from limbeck.pointcloud.data.layouts import EGO, KittiLayouts, TableLayouts, footprints_overlap

DATA = os.environ.get("LIMBECK_DATA")
real_data = pytest.mark.skipif(DATA is None, reason="LIMBECK_DATA does not name the shared data")


@pytest.fixture(scope="module")
def table() -> dict:
    return json.loads(files("limbeck.pointcloud.data").joinpath("layouts.json").read_text())


@pytest.fixture(scope="module")
def drawn() -> list:
    layouts, rng = TableLayouts(), np.random.default_rng(5)
    return [layouts.draw(rng) for _ in range(1200)]


def footprint(box: np.ndarray) -> Polygon:
    x, y, _, length, width, _, yaw = box
    plain = rectangle(-length / 2, -width / 2, length / 2, width / 2)
    return affinity.translate(affinity.rotate(plain, yaw, (0, 0), use_radians=True), x, y)


def test_overlap_of_footprints_is_shapelys():
    rng = np.random.default_rng(0)
    boxes = rng.uniform((0, 0, 0, 0.5, 0.5, 1, -3), (12, 12, 1, 6, 2, 2, 3), (60, 7))
    found = footprints_overlap(boxes[:30], boxes[30:])
    expected = [[footprint(a).intersects(footprint(b)) for b in boxes[30:]] for a in boxes[:30]]
    np.testing.assert_array_equal(found, expected)
    assert 50 < found.sum() < 800


def test_drawn_objects_keep_apart_from_each_other_and_from_the_sensors_car(drawn):
    for layout in drawn[:300]:
        shapes = [footprint(box) for box in (EGO, *layout.boxes)]
        for k, one in enumerate(shapes):
            assert all(one.distance(other) > 0.17 for other in shapes[:k])  # 0.25 along the axes, less across corners


def test_numbers_of_objects_are_the_tables(drawn, table):
    rows = np.array(table["counts"])
    expected = (rows[:, :1] * rows[:, 1:]).sum(0) / rows[:, 0].sum()
    found = np.array([[layout.names.count(name) for name in TYPES] for layout in drawn]).mean(0)
    assert rows[:, 0].sum() == table["frames"] == 7481
    spread = np.sqrt((rows[:, :1] * (rows[:, 1:] - expected) ** 2).sum(0) / rows[:, 0].sum() / len(drawn))
    for name, have, want, error in zip(TYPES, found, expected, spread):
        assert abs(have - want) < 4 * error + 0.05 * want, name  # a few find no room


def test_classes_occur_together_as_in_the_table(drawn, table):
    rows = np.array(table["counts"])
    columns = [1 + TYPES.index("Pedestrian"), 1 + TYPES.index("Cyclist")]
    both = rows[(rows[:, columns] > 0).all(1), 0].sum() / rows[:, 0].sum()
    found = np.mean([{"Pedestrian", "Cyclist"} <= set(layout.names) for layout in drawn])
    assert found == pytest.approx(both, abs=0.02)


@pytest.mark.parametrize("name", ["Car", "Pedestrian", "Cyclist"])
def test_places_yaws_and_sizes_are_the_tables(drawn, table, name):
    of_type = table["of_types"][name]
    boxes = np.concatenate([layout.boxes[[n == name for n in layout.names]] for layout in drawn])
    reach = np.hypot(boxes[:, 0], boxes[:, 1])
    azimuth = np.degrees(np.arctan2(boxes[:, 1], boxes[:, 0]))
    edges = [table["range_edges"], table["azimuth_edges"]]
    places, _, _ = np.histogram2d(reach, azimuth, edges)
    assert places.sum() == len(boxes)
    for axis in (0, 1):
        want = np.cumsum(np.array(of_type["places"]).sum(axis)) / np.sum(of_type["places"])
        have = np.cumsum(places.sum(axis)) / places.sum()
        assert np.abs(have - want).max() < 0.12
    yaws, _ = np.histogram(np.degrees(boxes[:, 6]), table["yaw_edges"])
    assert np.abs(np.cumsum(yaws) / len(boxes) - np.cumsum(of_type["yaws"]) / np.sum(of_type["yaws"])).max() < 0.08
    np.testing.assert_allclose(np.log(boxes[:, 3:6]).mean(0), of_type["size_mean"], atol=0.05)
    assert (boxes[:, 3:6] >= of_type["size_low"]).all()
    assert (boxes[:, 3:6] <= of_type["size_high"]).all()


@pytest.mark.parametrize("wanted", ["Pedestrian", "Cyclist"])
def test_a_wanted_class_is_there_and_near(wanted):
    layouts, rng = TableLayouts(), np.random.default_rng(1)
    for _ in range(50):
        layout = layouts.draw(rng, wanted)
        reach = np.hypot(*layout.boxes[[n == wanted for n in layout.names], :2].T)
        assert len(reach) >= 1
        assert reach.min() <= 35


def test_the_same_seed_gives_the_same_layout():
    one, other = (TableLayouts().draw(np.random.default_rng(3)) for _ in range(2))
    assert one.names == other.names
    np.testing.assert_array_equal(one.boxes, other.boxes)


def test_the_shipped_table_is_small_and_holds_no_frame():
    assert len(files("limbeck.pointcloud.data").joinpath("layouts.json").read_bytes()) < 100_000


@real_data
def test_the_shipped_table_is_what_the_script_counts(table):
    from benchmarks.layout_table import table as count

    assert json.loads(json.dumps(count(Path(str(DATA)) / "lidar_kitti"))) == table


@real_data
def test_real_layouts_are_kittis_of_disjoint_frames():
    root = str(Path(str(DATA)) / "lidar_kitti")
    splits = {split: KittiLayouts(split, root) for split in ("train", "val", "test")}
    ids = {split: set(found._ids.tolist()) for split, found in splits.items()}
    assert [len(ids[split]) for split in ("train", "val", "test")] == [3094, 618, 3769]
    assert not ids["train"] & ids["val"]
    assert not (ids["train"] | ids["val"]) & ids["test"]
    assert len({found.content_hash for found in splits.values()}) == 3
    rng = np.random.default_rng(0)
    for wanted in ("Pedestrian", "Cyclist", "Car"):
        for _ in range(10):
            assert wanted in splits["test"].draw(rng, wanted).names
    with pytest.raises(UnknownName, match="unknown class 'Horse'"):
        splits["test"].draw(rng, "Horse")


def labels(root: Path, **changes: object) -> Path:
    (root / "ImageSets_full").mkdir(exist_ok=True)
    for name in ("train", "val"):
        (root / f"ImageSets_full/{name}.txt").write_text("".join(f"{k:06d}\n" for k in range(12)))
    rows = dict(
        frame=np.arange(12, dtype=np.int16),
        type=np.zeros(12, np.int8),
        types=np.array(["Car"]),
        box_lidar=np.tile(np.array([10, 0, -1.6, 4, 1.6, 1.5, 0], np.float32), (12, 1)),
        difficulty=np.zeros(12, np.int8),
    )
    np.savez(root / "label_layouts.npz", **(rows | changes))
    return root


def test_a_layout_file_is_read_and_a_bad_one_refused(tmp_path):
    layouts = KittiLayouts("train", str(labels(tmp_path)))
    assert layouts.draw(np.random.default_rng(0), "Car").names == ("Car",)
    with pytest.raises(CorruptFile, match="'Horse'"):
        KittiLayouts("train", str(labels(tmp_path, types=np.array(["Horse"]))))
    (tmp_path / "label_layouts.npz").write_bytes(b"no archive")
    with pytest.raises(CorruptFile, match="not a whole npz"):
        KittiLayouts("train", str(tmp_path))
    (tmp_path / "label_layouts.npz").unlink()
    with pytest.raises(DataMissing, match="or use layouts='table'"):
        KittiLayouts("train", str(tmp_path))
