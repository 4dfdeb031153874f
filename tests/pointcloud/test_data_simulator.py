"""Simulated scenes: the same for the same seed, labels that fit the points, and clouds like KITTI's."""

import os
from pathlib import Path

import numpy as np
import pytest

from limbeck.errors import ConfigError, UnknownName
from limbeck.pointcloud.data import simulator
from limbeck.pointcloud.data._rays import BOX, Ground, Parts, all_hits, beams, nearest
from limbeck.pointcloud.data._shapes import SHAPES, clutter_parts, object_parts
from limbeck.pointcloud.data.frames import CLASSES, Frame, default_calibration, points_in_boxes
from limbeck.pointcloud.data.kitti import KittiFolder
from limbeck.pointcloud.data.layouts import DESK_RANGE, Layout
from limbeck.pointcloud.data.simulator import SimulatedScenes, simulate

DATA = os.environ.get("LIMBECK_DATA")
real_data = pytest.mark.skipif(DATA is None, reason="LIMBECK_DATA does not name the shared data")
SIZES = {"Car": (4, 1.6, 1.5), "Pedestrian": (0.8, 0.6, 1.75), "Cyclist": (1.8, 0.6, 1.75), "Tram": (10, 2.6, 3.2)}


def layout(*objects: tuple[str, float, float, float]) -> Layout:
    """Objects are type, x, y, yaw."""
    rows = [[x, y, 0.0, *SIZES[name], yaw] for name, x, y, yaw in objects]
    return Layout(tuple(name for name, *_ in objects), np.array(rows, np.float64).reshape(-1, 7))


def arrays(frame: Frame) -> list[np.ndarray]:
    return [frame.points, frame.boxes, frame.truncated, frame.occluded, frame.bboxes]


@pytest.fixture(scope="module")
def scenes() -> list[Frame]:
    made = SimulatedScenes("train")
    return [made[k] for k in range(40)]


def test_the_same_seed_gives_the_same_bits_and_another_one_others():
    for one, other in zip(arrays(simulate(3)), arrays(simulate(3))):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(simulate(3).points[:50], simulate(4).points[:50])
    assert simulate([3, 1]).id == "sim-3-1"


def test_a_scene_does_not_depend_on_those_before_it(scenes):
    again = SimulatedScenes("train")[7]
    for one, other in zip(arrays(scenes[7]), arrays(again)):
        np.testing.assert_array_equal(one, other)
    assert again.id == "train-00007"
    assert not np.array_equal(SimulatedScenes("val")[7].points[:50], again.points[:50])
    assert not np.array_equal(SimulatedScenes("train", seed=1)[7].points[:50], again.points[:50])


def test_the_hash_tells_splits_seeds_and_counts_apart():
    made = [SimulatedScenes("train"), SimulatedScenes("val"), SimulatedScenes("train", seed=1)]
    made += [SimulatedScenes("train", count=5)]
    assert [len(one) for one in made] == [300, 60, 300, 5]
    assert len({one.content_hash for one in made}) == 4
    assert SimulatedScenes("train").content_hash == made[0].content_hash


def test_fields_have_kittis_types_and_ranges(scenes):
    for frame in scenes:
        count = len(frame.names)
        assert frame.points.dtype == frame.boxes.dtype == frame.bboxes.dtype == np.float32
        assert frame.points.shape[1] == 4
        assert frame.boxes.shape == (count, 7)
        assert frame.bboxes.shape == (count, 4)
        assert frame.truncated.shape == frame.occluded.shape == (count,)
        assert ((frame.points[:, 3] >= 0) & (frame.points[:, 3] <= 1)).all()
        assert set(frame.occluded.tolist()) <= {0, 1, 2}
        assert ((frame.truncated >= 0) & (frame.truncated <= 1)).all()
        assert set(frame.names) <= set(SHAPES)
        assert frame.calibration is not None
        assert frame.calibration.in_image(frame.points).all()
        assert (frame.bboxes == frame.calibration.clipped(frame.bboxes)).all()


def test_every_label_has_points_near_its_box(scenes):
    for frame in scenes:
        assert (points_in_boxes(frame.points, frame.boxes, margin=0.1).sum(1) > 0).all()


@pytest.mark.parametrize("name", SHAPES)
def test_an_object_is_met_within_its_box_alone(name):
    box = np.array([[14.0, 2.0, -1.7, 4.0, 1.7, 1.8, 0.7]])
    for seed in range(4):
        parts = object_parts((name,), box, np.random.default_rng(seed))
        rays = beams()
        hits = all_hits(rays, parts, np.random.default_rng(0))
        assert len(hits.rays) > 50
        assert points_in_boxes(hits.distance[:, None] * rays.directions[hits.rays], box, margin=1e-9).all()
        assert set(parts.owners.tolist()) == {0}


def test_ground_points_lie_on_the_ground(monkeypatch):
    """Without clutter and objects, every point is 1.73 m below the sensor, up to tilt, waves and noise."""
    nothing = object_parts((), np.zeros((0, 7)), np.random.default_rng(0))
    monkeypatch.setattr(simulator, "clutter_parts", lambda *_: nothing)
    frame = simulate(1, layout=layout())
    assert len(frame.points) > 8000
    assert frame.names == ()
    ground = simulator._ground(np.random.default_rng([simulator._SALT, 1]))
    gap = frame.points[:, 2] - ground.height(frame.points[:, :2].astype(np.float64))
    assert np.abs(gap).max() < 0.05
    near = np.hypot(*frame.points[:, :2].T) < 10
    assert np.abs(frame.points[near, 2] + 1.73).max() < 0.5


def test_range_noise_is_two_centimetres(monkeypatch):
    wall = Parts(
        centres=np.array([[10.5, 0, 0]]),
        halves=np.array([[0.5, 8.0, 4.0]]),
        yaws=np.zeros(1),
        kinds=np.array([BOX]),
        owners=np.array([-1]),
        reflectance=np.array([0.5]),
        porous=np.zeros(1),
        depth=np.zeros(1),
    )
    monkeypatch.setattr(simulator, "clutter_parts", lambda *_: wall)
    points = simulate(1, layout=layout()).points
    points = points[np.abs(points[:, 0] - 10) < 0.15].astype(np.float64)
    along = points[:, 0] / np.linalg.norm(points[:, :3], axis=1)
    assert ((points[:, 0] - 10) / along).std() == pytest.approx(0.02, rel=0.1)
    assert points[:, 3].mean() == pytest.approx(0.5, abs=0.02)


def test_what_a_tram_hides_is_no_label_and_what_it_hides_in_part_is_occluded(monkeypatch):
    nothing = object_parts((), np.zeros((0, 7)), np.random.default_rng(0))
    monkeypatch.setattr(simulator, "clutter_parts", lambda *_: nothing)
    across = ("Tram", 12.0, 0.0, np.pi / 2)  # from y = −5 to 5
    hidden = simulate(2, layout=layout(across, ("Pedestrian", 18.0, 0.0, 0.0), ("Car", 18.0, 7.5, 0.0)))
    assert "Pedestrian" not in hidden.names
    assert hidden.names.count("Tram") == 1
    half = simulate(2, layout=layout(across, ("Car", 18.0, 7.6, np.pi / 2), ("Car", 18.0, -12.0, 0.0)))
    occluded = dict(zip([tuple(np.round(box[:2])) for box in half.boxes], half.occluded))
    assert occluded[12, 0] == 0
    assert occluded[18, 8] in (1, 2)
    assert occluded[18, -12] == 0


@pytest.mark.parametrize(("edge", "share"), [(-2.0, 0.0), (-0.5, 0.25), (0.0, 0.5), (0.5, 0.75), (2.0, 1.0)])
def test_hidden_share_is_the_covered_part_of_the_face(edge, share):
    """A wall at 10 m covers a face 2 m wide at 20 m up to y = `edge`."""
    wall, face = (10.0, edge / 2 - 2.0, 0.0, 0.01, 2.0, 5.0), (20.1, 0.0, -1.0, 0.1, 1.0, 1.0)
    table = np.array([wall, face])
    parts = Parts(
        table[:, :3], table[:, 3:], np.zeros(2), np.zeros(2, np.int64), np.array([-1, 0]), *np.zeros((3, 2)) + 0.0
    )
    rays = beams()
    hits = all_hits(rays, parts, np.random.default_rng(0))
    distance, _ = nearest(hits, len(rays.directions))
    (found,) = simulator._hidden(rays, parts, hits, distance, default_calibration(), 1)
    assert found == pytest.approx(share, abs=0.05)


def test_an_object_at_the_edge_is_truncated(monkeypatch):
    nothing = object_parts((), np.zeros((0, 7)), np.random.default_rng(0))
    monkeypatch.setattr(simulator, "clutter_parts", lambda *_: nothing)
    frame = simulate(0, layout=layout(("Car", 10.0, 8.5, 0.0), ("Car", 10.0, 0.0, 0.0)))
    assert frame.truncated[0] > 0.15
    assert frame.truncated[1] == 0
    assert frame.bboxes[0, 0] == 0


def test_drop_out_grows_with_distance_and_with_dark_surfaces():
    def answers(x: float, reflectance: float) -> float:
        wall = Parts(
            np.array([[x, 0, 0]]), np.array([[0.1, 60.0, 20.0]]), np.zeros(1), np.array([BOX]), np.array([0]),
            np.array([reflectance]), np.zeros(1), np.zeros(1),
        )  # fmt: skip
        rays, rng = beams(), np.random.default_rng(0)
        hits = all_hits(rays, wall, rng)
        deep = Ground(np.zeros(2), np.array([0.0]), np.zeros((1, 2)), np.zeros(1))
        distance, first = nearest(hits, len(rays.directions))
        _, owners = simulator._returns(rays, wall, hits, distance, first, deep, rng)
        met = np.isfinite(distance) & (distance < deep.distances(rays.directions))
        return (owners == 0).sum() / met.sum()

    rates = [answers(x, 0.3) for x in (10, 30, 60)]
    assert rates[0] > rates[1] > rates[2] > 0.3
    assert rates[0] == pytest.approx(0.96, abs=0.01)
    assert answers(30, 0.05) < answers(30, 0.3) < answers(30, 0.9)


def test_clutter_stands_in_no_object_and_hides_none_wholly():
    rng = np.random.default_rng(4)
    boxes = layout(("Car", 15.0, 3.0, 0.3), ("Pedestrian", 25.0, -6.0, 0.0), ("Cyclist", 30.0, 9.0, 1.0)).boxes
    boxes[:, 2] = -1.73
    flat = Ground(np.zeros(2), np.zeros(1), np.zeros((1, 2)), np.zeros(1))
    for _ in range(20):
        parts = clutter_parts(boxes, flat, rng)
        assert 20 < len(parts) < 300
        assert set(parts.owners.tolist()) == {-1}
        for t in np.linspace(0, 1, 9):  # points along each part, seen from above
            for side in (-1, 1):
                local = np.stack([(2 * t - 1) * parts.halves[:, 0], side * parts.halves[:, 1]], 1)
                cos, sin = np.cos(parts.yaws), np.sin(parts.yaws)
                x = parts.centres[:, 0] + cos * local[:, 0] - sin * local[:, 1]
                y = parts.centres[:, 1] + sin * local[:, 0] + cos * local[:, 1]
                low = parts.centres[:, 2] - parts.halves[:, 2] < -1.0  # crowns of trees are above
                assert not points_in_boxes(np.stack([x, y, np.full(len(x), -1.0)], 1)[low], boxes).any()


def test_every_second_scene_has_a_pedestrian_or_a_cyclist(scenes):
    rare = [bool({"Pedestrian", "Cyclist"} & set(frame.names)) for frame in scenes]
    assert np.mean(rare[1::2]) > 0.9  # a few hide behind others
    assert np.mean(rare[0::2]) < 0.6


def test_the_test_split_has_sixty_boxes_of_each_class_at_moderate():
    found = dict.fromkeys(CLASSES, 0)
    low_x, low_y, high_x, high_y = DESK_RANGE
    made = SimulatedScenes("test")
    for k in range(1, len(made), 2):  # the others only add to it
        frame = made[k]
        x, y = frame.boxes[:, :2].T
        counted = (frame.difficulties() >= 0) & (frame.difficulties() <= 1)
        counted &= (x > low_x) & (x < high_x) & (y > low_y) & (y < high_y)
        for name in np.array(frame.names)[counted]:
            if name in found:
                found[name] += 1
    assert min(found.values()) >= 60, found


def pillars(points: np.ndarray) -> tuple[int, float, int]:
    """Points in the desk's range, share of 0.32 m pillars with one point, and how many pillars there are."""
    x, y, z = points[:, :3].T
    inside = (x >= 0) & (x < 40.96) & (np.abs(y) < 20.48) & (z >= -3) & (z < 1)
    cells = np.floor((points[inside, :2] + (0, 20.48)) / 0.32)
    counts = np.unique(cells, axis=0, return_counts=True)[1]
    return int(inside.sum()), float((counts == 1).mean()), len(counts)


def points_per_car(frames: list[Frame], low: float, high: float) -> float:
    """Median over visible cars between two distances."""
    found = []
    for frame in frames:
        reach = np.hypot(frame.boxes[:, 0], frame.boxes[:, 1])
        chosen = (reach >= low) & (reach < high) & (frame.occluded == 0) & (frame.truncated < 0.3)
        chosen &= np.array([name == "Car" for name in frame.names], bool)
        found += points_in_boxes(frame.points, frame.boxes[chosen]).sum(1).tolist()
    return float(np.median(found))


def test_clouds_are_as_dense_as_kittis(scenes):
    """Of the 25 real frames: 17,436 points and 2,424 pillars on average, 18 % of which hold one point."""
    points, single, count = np.mean([pillars(frame.points) for frame in scenes], axis=0)
    assert 17436 / 1.25 < points < 17436 * 1.25
    assert 2424 / 1.25 < count < 2424 * 1.25
    assert single == pytest.approx(0.18, abs=0.04)


@real_data
def test_cars_have_as_many_points_as_kittis(scenes):
    folder = KittiFolder(Path(str(DATA)) / "kitti_frames")
    real = [folder.frame(key) for split in ("train", "val") for key in folder.ids(split)]
    for low, high in ((10, 20), (20, 30), (30, 60)):
        ratio = points_per_car(scenes, low, high) / points_per_car(real, low, high)
        assert 1 / 1.8 < ratio < 1.8, (low, high, ratio)


@real_data
def test_real_layouts_can_be_simulated():
    root = str(Path(str(DATA)) / "lidar_kitti")
    made = SimulatedScenes("test", layouts="real", root=root, count=8)
    frames = [made[k] for k in range(8)]
    assert "Cyclist" in frames[1].names
    assert made.content_hash != SimulatedScenes("test", count=8).content_hash
    np.testing.assert_array_equal(
        frames[3].points, SimulatedScenes("test", layouts="real", root=root, count=8)[3].points
    )


def test_what_makes_no_scene_is_refused():
    with pytest.raises(ConfigError, match="0 or more; got -1"):
        simulate(-1)
    with pytest.raises(ConfigError, match="count of simulated scenes is at least 1; got 0"):
        SimulatedScenes("train", count=0)
    with pytest.raises(ConfigError, match="seed of simulated scenes"):
        SimulatedScenes("train", seed=-2)
    with pytest.raises(UnknownName, match="unknown split 'trian'"):
        SimulatedScenes("trian")
    with pytest.raises(UnknownName, match=r"unknown layouts 'tabel'.*'table'"):
        SimulatedScenes("train", layouts="tabel")
    with pytest.raises(UnknownName, match="unknown type 'Horse'"):
        simulate(0, layout=Layout(("Horse",), np.array([[10.0, 0, 0, 1, 1, 1, 0]])))
    with pytest.raises(ConfigError, match="box 0 has sizes"):
        simulate(0, layout=Layout(("Car",), np.array([[10.0, 0, 0, 0, 1, 1, 0]])))
    with pytest.raises(IndexError):
        SimulatedScenes("train", count=3)[3]
