"""Augmentation: cloud and boxes move as one."""

import math

import numpy as np
import pytest

from limbeck.engine.augment import parse_augment
from limbeck.errors import ConfigError, UnknownName
from limbeck.pointcloud.data.augment import FlipTurnScale, flipped, in_range, scaled, turned
from limbeck.pointcloud.data.frames import points_in_boxes
from limbeck.pointcloud.data.simulator import simulate


@pytest.fixture(scope="module")
def pair():
    frame = simulate(11, wanted="Cyclist")
    assert len(frame.boxes) > 2
    return frame.points.astype(np.float64), frame.boxes.astype(np.float64)


@pytest.mark.parametrize(
    "change",
    [
        flipped,
        lambda points, boxes: turned(points, boxes, 0.6),
        lambda points, boxes: scaled(points, boxes, 1.05),
        lambda points, boxes: FlipTurnScale()(points, boxes, np.random.default_rng(2)),
    ],
)
def test_every_box_keeps_its_points(pair, change):
    points, boxes = pair
    before = points.copy(), boxes.copy()
    found = change(points, boxes)
    np.testing.assert_array_equal(points_in_boxes(*found), points_in_boxes(points, boxes))
    assert points_in_boxes(points, boxes).sum() > 30
    assert not np.allclose(found[0], points)
    np.testing.assert_array_equal(found[0][:, 3], points[:, 3])
    np.testing.assert_array_equal(points, before[0])  # the arguments are left alone
    np.testing.assert_array_equal(boxes, before[1])
    assert (found[0].dtype, found[1].dtype) == (points.dtype, boxes.dtype)


def test_mirrored_twice_and_turned_there_and_back_is_nothing(pair):
    for one, other in zip(flipped(*flipped(*pair)), pair):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(turned(*turned(*pair, 2.9), -2.9), pair):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_a_quarter_turn_is_counter_clockwise():
    points, boxes = turned(np.array([[1.0, 0, 5, 0.5]]), np.array([[2.0, 0, 0, 4, 2, 1, 0.0]]), math.pi / 2)
    np.testing.assert_allclose(points, [[0, 1, 5, 0.5]], atol=1e-12)
    np.testing.assert_allclose(boxes, [[0, 2, 0, 4, 2, 1, math.pi / 2]], atol=1e-12)


def test_float32_stays_float32(pair):
    points, boxes = (array.astype(np.float32) for array in pair)
    found = FlipTurnScale()(points, boxes, np.random.default_rng(0))
    assert (found[0].dtype, found[1].dtype) == (np.float32, np.float32)


def test_draws_are_of_the_generator_and_within_the_options(pair):
    points, boxes = np.array([[1.0, 0, 0, 0.5]]), np.array([[1.0, 0, 0, 1, 1, 1, 0.0]])
    rng = np.random.default_rng(0)
    found = [FlipTurnScale(flip=0.5, turn=0.3, scale=(0.9, 1.2))(points, boxes, rng)[1][0] for _ in range(400)]
    angles, sizes = np.array([box[6] for box in found]), np.array([box[3] for box in found])
    assert -0.3 <= angles.min() < -0.28
    assert 0.28 < angles.max() <= 0.3
    assert 0.9 <= sizes.min() < 0.91
    assert 1.19 < sizes.max() <= 1.2
    aside = np.array([[0.0, 1.0, 0, 0.5]])
    sides = [FlipTurnScale(turn=0.0)(aside, boxes, rng)[0][0, 1] > 0 for _ in range(400)]
    assert 0.4 < np.mean(sides) < 0.6
    one, other = (FlipTurnScale()(*pair, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(one[0], other[0])


def test_nothing_is_changed_by_options_that_say_so(pair):
    found = FlipTurnScale(flip=0.0, turn=0.0, scale=(1.0, 1.0))(*pair, np.random.default_rng(0))
    np.testing.assert_allclose(found[0], pair[0], atol=1e-12)
    np.testing.assert_allclose(found[1], pair[1], atol=1e-12)


def test_range_keeps_points_inside_and_boxes_by_their_centre():
    points = np.array([[0, 0, 0, 1], [9.99, -5, -3, 1], [10, 0, 0, 1], [5, 5, 0, 1], [5, 0, 1, 1], [-0.01, 0, 0, 1]])
    boxes = np.array([[5, 0, -9, 4, 2, 1, 0], [10, 0, 0, 4, 2, 1, 0], [0, -5, 0, 4, 2, 1, 0]], np.float64)
    inside, kept = in_range(points, boxes, (0, -5, -3, 10, 5, 1))
    assert inside.tolist() == [True, True, False, False, False, False]
    assert kept.tolist() == [True, False, True]  # by x and y alone


@pytest.mark.parametrize("extent", [(0, 0, 0, 1, 1), (0, 0, 0, 1, 1, 0), (0, 0, 0, 1, math.nan, 1)])
def test_a_range_out_of_order_is_refused(extent):
    with pytest.raises(ConfigError, match="a range is x, y, z"):
        in_range(np.zeros((1, 4)), np.zeros((1, 7)), extent)


@pytest.mark.parametrize(
    "option", [dict(flip=1.5), dict(turn=-1.0), dict(turn=9.0), dict(scale=(1.1, 0.9)), dict(scale=(1,))]
)
def test_options_are_checked(option):
    with pytest.raises(ConfigError, match=f"augment {next(iter(option))} is"):
        parse_augment(FlipTurnScale, option)
    with pytest.raises(UnknownName, match="did you mean 'flip'"):
        parse_augment(FlipTurnScale, dict(flp=1))
