"""Frames and calibration against loops that share no code with them."""

import math

import numpy as np
import pytest

from limbeck.pointcloud.data.frames import (
    Calibration,
    Frame,
    boxes_fault,
    default_calibration,
    points_fault,
    points_in_boxes,
    wrapped,
)


def tilted() -> Calibration:
    """A camera that is turned a little about every axis."""
    a, b = 0.02, -0.015
    turn = np.array([[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]])
    pitch = np.array([[1, 0, 0], [0, math.cos(b), -math.sin(b)], [0, math.sin(b), math.cos(b)]])
    plain = default_calibration()
    return Calibration(plain.P2, pitch @ turn, plain.velo_to_cam, plain.image_size)


def boxes_at(rng: np.random.Generator, count: int) -> np.ndarray:
    low, high = (5, -8, -2, 0.5, 0.5, 1, -3.1), (40, 8, -1, 5, 2, 2, 3.1)
    return rng.uniform(low, high, (count, 7))


def corners(box: np.ndarray) -> list[list[float]]:
    """Corners of one camera box by KITTI's devkit: rotation about y, y down, bottom at y."""
    x, y, z, length, height, width, ry = box
    found = []
    for i in (-0.5, 0.5):
        for j in (-0.5, 0.5):
            for up in (0, height):
                dx, dz = i * length, j * width
                found.append(
                    [x + math.cos(ry) * dx + math.sin(ry) * dz, y - up, z - math.sin(ry) * dx + math.cos(ry) * dz]
                )
    return found


def test_projection_is_the_extent_of_the_devkits_corners():
    calibration, boxes = tilted(), boxes_at(np.random.default_rng(0), 20)
    for box, camera, found in zip(boxes, calibration.to_camera(boxes), calibration.project(boxes)):
        pixels = []
        for corner in corners(camera):
            u, v, w = calibration.P2 @ [*corner, 1.0]
            pixels.append((u / w, v / w))
        columns, rows = zip(*pixels)
        np.testing.assert_allclose(
            found, [min(columns), min(rows), max(columns), max(rows)], atol=1e-9, err_msg=str(box)
        )


def test_boxes_come_back_from_the_camera():
    boxes = boxes_at(np.random.default_rng(1), 50)
    calibration = tilted()
    np.testing.assert_allclose(calibration.to_lidar(calibration.to_camera(boxes)), boxes, atol=1e-12)


def test_a_box_that_looks_forward_has_rotation_minus_a_quarter_turn():
    (camera,) = default_calibration().to_camera(np.array([[10.0, 2.0, -1.7, 4.0, 1.6, 1.5, 0.0]]))
    np.testing.assert_allclose(camera, [-2.0, 1.7 - 0.08, 10 - 0.27, 4.0, 1.5, 1.6, -math.pi / 2])


def test_in_image_agrees_with_the_projection_of_a_point():
    calibration = tilted()
    points = np.random.default_rng(2).uniform((-5, -20, -3), (40, 20, 3), (500, 3))
    expected = []
    for point in points:
        x, y, z = calibration.R0 @ (calibration.velo_to_cam @ [*point, 1.0])
        u, v, w = calibration.P2 @ [x, y, z, 1.0]
        expected.append(z > 0 and 0 <= u / w < 1242 and 0 <= v / w < 375)
    assert calibration.in_image(points).tolist() == expected
    assert 50 < sum(expected) < 450


def test_a_box_that_reaches_behind_the_camera_is_cut_before_it():
    calibration = default_calibration()
    long = np.array([[2.0, 2.0, -1.7, 12.0, 2.0, 1.5, 0.0]])  # from −4 to 8 metres
    found = calibration.project(long)[0]
    ahead = calibration.project(np.array([[4.185, 2.0, -1.7, 7.63, 2.0, 1.5, 0.0]]))[0]  # from 0.37, 0.1 m before it
    np.testing.assert_allclose(found, ahead, rtol=1e-9)
    assert calibration.project(long - [20.0, 0, 0, 0, 0, 0, 0]).tolist() == [[-1.0] * 4]
    assert calibration.project(np.zeros((0, 7))).shape == (0, 4)


def test_points_in_boxes_against_a_loop():
    rng = np.random.default_rng(3)
    boxes, points = boxes_at(rng, 6), rng.uniform((3, -10, -3), (42, 10, 2), (3000, 3))
    points[:600] = boxes[rng.integers(6, size=600), :3] + rng.normal(0, 0.7, (600, 3))
    found = points_in_boxes(points, boxes)
    for row, (x, y, z, length, width, height, yaw) in zip(found, boxes):
        for inside, (px, py, pz) in zip(row, points):
            reach, angle = math.hypot(px - x, py - y), math.atan2(py - y, px - x) - yaw
            along, across = abs(reach * math.cos(angle)), abs(reach * math.sin(angle))
            assert inside == (along <= length / 2 and across <= width / 2 and 0 <= pz - z <= height)
    assert found.sum() > 100
    assert (points_in_boxes(points, boxes, margin=0.2) >= found).all()


@pytest.mark.parametrize(
    ("height", "occluded", "truncated", "level"),
    [
        (41, 0, 0.0, 0),
        (40, 0, 0.0, 1),  # easy needs more than 40
        (41, 0, 0.15, 0),
        (41, 0, 0.16, 1),
        (41, 1, 0.0, 1),
        (26, 2, 0.5, 2),
        (26, 2, 0.51, -1),
        (25, 0, 0.0, -1),
        (99, 3, 0.0, -1),
    ],
)
def test_difficulty_is_kittis(height, occluded, truncated, level):
    frame = Frame(
        id="one",
        points=np.zeros((1, 4), np.float32),
        boxes=np.ones((1, 7), np.float32),
        names=("Van",),
        truncated=np.array([truncated]),
        occluded=np.array([occluded]),
        bboxes=np.array([[10.0, 20.0, 30.0, 20.0 + height]]),
    )
    assert frame.difficulties().tolist() == [level]
    assert frame.labels.tolist() == [-1]


def test_select_keeps_rows_of_every_field():
    count = 4
    frame = Frame(
        id="one",
        points=np.zeros((1, 4), np.float32),
        boxes=np.arange(28.0).reshape(4, 7),
        names=("Car", "Cyclist", "Van", "Pedestrian"),
        truncated=np.arange(count) / 10,
        occluded=np.arange(count),
        bboxes=np.arange(16.0).reshape(4, 4),
        dont_care=np.ones((2, 4)),
    )
    for chosen in (np.array([False, True, False, True]), np.array([1, 3])):
        found = frame.select(chosen)
        assert found.names == ("Cyclist", "Pedestrian")
        assert found.labels.tolist() == [1, 0]
        assert found.occluded.tolist() == [1, 3]
        assert found.boxes[:, 0].tolist() == [7, 21]
        assert found.bboxes[:, 0].tolist() == [4, 12]
        assert found.truncated.tolist() == [0.1, pytest.approx(0.3)]
        assert len(found.dont_care) == 2


def test_wrapped_angles_are_the_same_turn():
    angles = np.linspace(-12, 12, 101)
    found = wrapped(angles)
    assert (found >= -math.pi).all()
    assert (found < math.pi).all()
    np.testing.assert_allclose(np.exp(1j * found), np.exp(1j * angles), atol=1e-12)


@pytest.mark.parametrize(
    ("points", "says"),
    [
        (np.zeros((3, 3)), "shape"),
        (np.zeros((0, 4)), "no points"),
        (np.array([[0, 0, 0, 0.5], [np.nan, 1, 1, 0.5]]), "point 1"),
        (np.array([[0, 0, 0, 1.5]]), "reflectance 1.5 of point 0"),
        (np.array([[0, 0, 0, 1.0]]), None),
    ],
)
def test_faults_of_points(points, says):
    found = points_fault(points)
    assert found is None if says is None else says in found


@pytest.mark.parametrize(
    ("boxes", "says"),
    [
        (np.ones((2, 6)), "shape"),
        (np.array([[1.0, 1, 1, 1, 1, np.inf, 0]]), "not finite"),
        (np.array([[1.0, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, -2, 1, 0]]), "box 1 has sizes"),
        (np.ones((0, 7)), None),
    ],
)
def test_faults_of_boxes(boxes, says):
    found = boxes_fault(boxes)
    assert found is None if says is None else says in found
