"""Ground-truth sampling and noise on objects: counts, collisions, points that go with their box, no hidden state."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from limbeck.engine.registry import DATASETS
from limbeck.errors import ConfigError, UnknownName
from limbeck.pointcloud.data.frames import CLASSES, points_in_boxes
from limbeck.pointcloud.data.gt_sampling import GTSampling, ObjectBank, ObjectNoise, free_places
from limbeck.pointcloud.data.simulator import simulate

affinity = pytest.importorskip("shapely.affinity", reason="needs the 'dev' extra")
geometry = pytest.importorskip("shapely.geometry", reason="needs the 'dev' extra")

CAR = CLASSES.index("Car")


@pytest.fixture(scope="module")
def frames():
    return [simulate(seed, wanted=("Pedestrian", "Cyclist")[seed % 2]) for seed in range(12)]


@pytest.fixture(scope="module")
def bank(frames):
    return ObjectBank.of(frames, dict.fromkeys(CLASSES, 5))


def cloud_of(frame):
    ours = frame.labels >= 0
    return frame.points, frame.boxes[ours], frame.labels[ours]


def shape(box):
    x, y, _, length, width, _, yaw = (float(n) for n in box)
    flat = geometry.box(x - length / 2, y - width / 2, x + length / 2, y + width / 2)
    return affinity.rotate(flat, yaw, origin=(x, y), use_radians=True)


def meeting(boxes) -> set[tuple[int, int]]:
    """Pairs of footprints that share an area, by shapely."""
    shapes = [shape(one) for one in boxes]
    return {(a, b) for a, b in combinations(range(len(shapes)), 2) if shapes[a].intersection(shapes[b]).area > 1e-6}


# --- the bank ---


def test_bank_holds_counted_objects_with_enough_points(frames, bank):
    expected = dict.fromkeys(range(3), 0)
    for frame in frames:
        for row, label in enumerate(frame.labels):
            inside = points_in_boxes(frame.points, frame.boxes[row : row + 1])[0].sum()
            expected[int(label)] = expected.get(int(label), 0) + int(frame.difficulties()[row] >= 0 and inside >= 5)
    assert [len(of_class) for of_class in bank.objects] == [expected[label] for label in range(3)]
    assert all(len(of_class) for of_class in bank.objects)
    for points, box in bank.objects[CAR]:
        assert len(points) >= 5
        assert points_in_boxes(points, box[None]).all()
    few = ObjectBank.of(frames, dict(Car=200))
    assert 0 < len(few.objects[CAR]) < len(bank.objects[CAR])


# --- sampling ---


@pytest.mark.parametrize("seed", range(4))
def test_clouds_are_filled_up_without_collisions(frames, bank, seed):
    frame = frames[seed]
    cloud = cloud_of(frame)
    before = [part.copy() for part in cloud]
    sampling = GTSampling(dict(Car=9, Pedestrian=4))
    points, boxes, labels = sampling(cloud, frame.boxes, bank, np.random.default_rng(seed))
    own = len(cloud[1])
    np.testing.assert_array_equal(boxes[:own], cloud[1])
    np.testing.assert_array_equal(labels[:own], cloud[2])
    added = boxes[own:]
    assert len(added) > 2
    for name, most in (("Car", 9), ("Pedestrian", 4), ("Cyclist", 0)):
        label = CLASSES.index(name)
        assert (labels[own:] == label).sum() <= max(most - (cloud[2] == label).sum(), 0)
    everything = np.concatenate([frame.boxes, added])
    assert not {pair for pair in meeting(everything) if pair[1] >= len(frame.boxes)}
    stock = {box.tobytes(): (p, label) for label, of_class in enumerate(bank.objects) for p, box in of_class}
    assert all(stock[box.tobytes()][1] == label for box, label in zip(added, labels[own:]))
    assert len({box.tobytes() for box in added}) == len(added)
    for k, box in enumerate(added):  # inside a sampled box are its own points and no others
        inside = points[points_in_boxes(points, box[None])[0]]
        np.testing.assert_array_equal(np.sort(inside, 0), np.sort(stock[box.tobytes()][0], 0), err_msg=str(k))
    outside = ~points_in_boxes(cloud[0], added).any(0)
    np.testing.assert_array_equal(points[len(points) - outside.sum() :], cloud[0][outside])
    for part, old in zip(cloud, before):
        np.testing.assert_array_equal(part, old)  # the arguments are left alone


def test_a_full_cloud_stays_as_it_is(frames, bank):
    cloud = cloud_of(frames[0])
    full = GTSampling({name: max(int((cloud[2] == k).sum()), 1) for k, name in enumerate(CLASSES) if k in cloud[2]})
    found = full(cloud, frames[0].boxes, bank, np.random.default_rng(0))
    assert all(a is b for a, b in zip(found, cloud))
    empty = ObjectBank([[], [], []])
    assert GTSampling()(cloud, frames[0].boxes, empty, np.random.default_rng(0))[0] is cloud[0]


def test_places_by_hand():
    def at(x):
        return np.array([x, 0.0, 0, 2, 2, 2, 0])

    assert free_places([at(0.0), at(5.0)], np.stack([at(1.0)])) == [1]  # one that stands
    # The first meets the second and is left out, which frees the second; the third meets nobody.
    assert free_places([at(0.0), at(1.0), at(9.0)], np.zeros((0, 7))) == [1, 2]
    assert free_places([], np.stack([at(1.0)])) == []


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        (dict(counts=dict(Tram=3)), UnknownName, "Tram"),
        (dict(counts=dict(Car=0)), ConfigError, "1 or more for each class; got 0 for Car"),
        (dict(min_points=dict(Car=2.5)), ConfigError, "got 2.5 for Car"),
    ],
)
def test_wrong_options_of_sampling_are_said(options, kind, said):
    with pytest.raises(kind, match=said):
        GTSampling(**options)


# --- noise ---


@pytest.mark.parametrize("seed", range(4))
def test_noise_moves_objects_with_their_points_and_without_collisions(frames, seed):
    points, boxes, _ = cloud_of(frames[seed])
    before = points.copy(), boxes.copy()
    standing = meeting(boxes)
    moved, found = ObjectNoise()(points, boxes, np.random.default_rng(seed))
    np.testing.assert_array_equal(found[:, 3:6], boxes[:, 3:6])
    assert (np.abs(found[:, :3] - boxes[:, :3]).max(1) > 0.01).mean() > 0.5
    turned = (found[:, 6] - boxes[:, 6] + np.pi) % (2 * np.pi) - np.pi
    assert np.abs(turned).max() <= np.pi / 4 + 1e-5
    assert meeting(found) <= standing
    for old, new in zip(boxes, found):  # each object's points lie in it as before, in its own axes
        own = points_in_boxes(points, old[None])[0]
        np.testing.assert_allclose(local(moved[own], new), local(points[own], old), atol=2e-4)
    apart = ~points_in_boxes(points, boxes).any(0)
    np.testing.assert_array_equal(moved[apart], points[apart])
    np.testing.assert_array_equal(moved[:, 3], points[:, 3])
    np.testing.assert_array_equal(points, before[0])
    np.testing.assert_array_equal(boxes, before[1])


def local(points, box):
    """Points in a box's own axes."""
    x, y = (points[:, :2] - box[:2]).astype(np.float64).T
    cos, sin = np.cos(float(box[6])), np.sin(float(box[6]))
    return np.stack([x * cos + y * sin, y * cos - x * sin, points[:, 2] - box[2]], 1)


def test_an_object_that_finds_no_place_stays():
    row = np.array([[4.0 * k, 0, 0, 3.9, 40, 2, 0] for k in range(3)])  # walls: the middle one cannot turn nor move far
    points = np.array([[4.0, 0, 1, 0.5]])
    noise = ObjectNoise(translation=(0.0, 0.0, 0.0), turn=1.0, tries=1)
    moved, boxes = noise(points, row, np.random.default_rng(0))
    np.testing.assert_array_equal(boxes[1], row[1])
    np.testing.assert_array_equal(moved, points)
    assert ObjectNoise()(points, row[:0], np.random.default_rng(0))[0] is points


@pytest.mark.parametrize(
    "options", [dict(translation=(1, 1)), dict(translation=(-1, 0, 0)), dict(turn=4.0), dict(tries=0)]
)
def test_wrong_options_of_noise_are_said(options):
    with pytest.raises(ConfigError, match="object_noise"):
        ObjectNoise(**options)


# --- in a data set ---


def scenes(**options):
    usual = dict(
        type="LidarScenes", split="train", count=6, augment=dict(flip=0.0, turn=0.0, scale=(1.0, 1.0)), views=0
    )
    return DATASETS.make(usual | options)


def test_a_data_set_samples_by_seed_view_and_id_alone():
    sampled = scenes(gt_sampling=dict(counts=dict(Car=12)), object_noise={})
    plain = scenes()
    sampled.set_epoch(1)
    plain.set_epoch(1)
    batch, alone, before = sampled.__getitems__([2, 4]), sampled.__getitems__([4]), plain.__getitems__([4])
    np.testing.assert_array_equal(batch["inputs"][1], alone["inputs"][0])
    np.testing.assert_array_equal(batch["data_samples"]["boxes"][1], alone["data_samples"]["boxes"][0])
    assert len(alone["data_samples"]["boxes"][0]) > len(before["data_samples"]["boxes"][0])
    assert len(alone["data_samples"]["labels"][0]) == len(alone["data_samples"]["boxes"][0])
    sampled.set_epoch(2)
    assert len(sampled.__getitems__([4])["inputs"][0]) != len(alone["inputs"][0])
    again = scenes(gt_sampling=dict(counts=dict(Car=12)), object_noise={})
    again.set_epoch(1)
    np.testing.assert_array_equal(again.__getitems__([4])["inputs"][0], alone["inputs"][0])


def test_what_is_sampled_is_part_of_the_pipeline():
    found = scenes(gt_sampling=dict(counts=dict(Car=12)), object_noise=dict(tries=5)).pipeline()
    assert found["gt_sampling"] == dict(counts=dict(Car=12), min_points=None)
    assert found["object_noise"]["tries"] == 5
    assert not {"gt_sampling", "object_noise"} & set(scenes().pipeline())


def test_sampling_needs_augmentation():
    with pytest.raises(ConfigError, match="belong to augmentation"):
        scenes(augment=None, views=1, gt_sampling={})
    with pytest.raises(UnknownName, match="count"):
        scenes(gt_sampling=dict(count=dict(Car=3)))
