"""Overlaps of turned boxes against shapely, closed forms and counted points, and the cases that break other kernels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import Polygon

from limbeck.errors import ShapeMismatch
from limbeck.pointcloud.boxes import bev_corners, bev_intersection, bev_iou, iou_3d, overlaps


def boxes(seed: int, count: int, spread: float = 3.0, smallest: float = 0.3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    place = rng.uniform([-spread, -spread, -1], [spread, spread, 1], (count, 3))
    return np.concatenate((place, rng.uniform(smallest, 5, (count, 3)), rng.uniform(-7, 7, (count, 1))), 1)


def box(x=0.0, y=0.0, z=0.0, length=4.0, width=2.0, height=1.5, yaw=0.0) -> np.ndarray:
    return np.array([[x, y, z, length, width, height, yaw]], dtype=np.float64)


def footprint(one: np.ndarray) -> Polygon:
    """Its own corners, by a rotation matrix."""
    x, y, _, length, width, _, yaw = one
    turn = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
    local = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)]) * (length / 2, width / 2)
    return Polygon(local @ turn.T + (x, y))


def clipped(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([footprint(p).intersection(footprint(q)).area for p, q in zip(a, b)])


def by_hand(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    shared = clipped(a, b)
    high = np.array([max(0.0, min(p[2] + p[5], q[2] + q[5]) - max(p[2], q[2])) for p, q in zip(a, b)])
    bev = shared / (a[:, 3] * a[:, 4] + b[:, 3] * b[:, 4] - shared)
    both = shared * high
    return bev, both / (a[:, 3:6].prod(1) + b[:, 3:6].prod(1) - both)


def test_thousands_of_random_pairs_as_shapely_has_them():
    a, b = boxes(0, 5000), boxes(1, 5000)
    assert bev_intersection(a, b) == pytest.approx(clipped(a, b), abs=1e-9)
    found, wanted = overlaps(a, b), by_hand(a, b)
    assert (wanted[0] > 0).sum() > 1500
    for one, other in zip(found, wanted):
        assert one == pytest.approx(other, abs=1e-9)
        assert one.min() >= 0
        assert one.max() <= 1


@pytest.mark.parametrize("away", [0.0, 1e5])
def test_boxes_alike_give_one_at_every_yaw_and_far_from_the_origin(away):
    one = boxes(2, 2000)
    one[:, :2] += away
    turned, around = one.copy(), one.copy()
    turned[:, 6] += np.pi
    around[:, 6] += 2 * np.pi
    for other in (one.copy(), turned, around):
        for found in overlaps(one, other):
            assert found == pytest.approx(1.0, abs=1e-9)


def test_boxes_almost_alike_as_shapely_has_them():
    rng = np.random.default_rng(3)
    one = boxes(3, 3000)
    other = one + rng.normal(0, 1, one.shape) * rng.choice([1e-3, 1e-6, 1e-9, 1e-12, 1e-15], (len(one), 1))
    assert bev_intersection(one, other) == pytest.approx(clipped(one, other), abs=1e-8)


def test_nested_boxes_share_the_inner_one():
    inner = boxes(4, 1000, spread=1.0)
    outer = boxes(5, 1000, spread=1.0)
    outer[:, 2:6] = [-2.0, 30.0, 30.0, 20.0]
    assert bev_intersection(inner, outer) == pytest.approx(inner[:, 3] * inner[:, 4], abs=1e-9)
    assert bev_intersection(outer, inner) == pytest.approx(inner[:, 3] * inner[:, 4], abs=1e-9)
    bev, space = overlaps(inner, outer)
    assert bev == pytest.approx(inner[:, 3] * inner[:, 4] / 900, abs=1e-12)
    assert space == pytest.approx(inner[:, 3:6].prod(1) / 18000, abs=1e-12)


def test_boxes_that_touch_share_nothing():
    yaws = np.linspace(-7, 7, 500)
    one = np.repeat(box(), 500, 0)
    one[:, 6] = yaws
    along, corner = one.copy(), one.copy()
    along[:, :2] += 4.0 * np.stack((np.cos(yaws), np.sin(yaws)), 1)  # front to back
    corner[:, :2] = bev_corners(one)[:, 0] * 2  # corner to corner
    above = one.copy()
    above[:, 2] += 1.5
    assert overlaps(one, along)[0] == pytest.approx(0.0, abs=1e-12)
    assert overlaps(one, corner)[0] == pytest.approx(0.0, abs=1e-12)
    bev, space = overlaps(one, above)
    assert bev == pytest.approx(1.0, abs=1e-9)
    assert space == pytest.approx(0.0, abs=1e-12)


def test_tiny_flat_and_empty_boxes():
    rng = np.random.default_rng(6)
    tiny = boxes(6, 1000, spread=1e-6, smallest=0.1) * [1, 1, 1, 1e-6, 1e-6, 1, 1]
    tiny_too = tiny + rng.normal(0, 1e-7, tiny.shape) * [1, 1, 0, 0, 0, 0, 1e6]
    found = overlaps(tiny, tiny_too)[0]
    assert found == pytest.approx(by_hand(tiny, tiny_too)[0], abs=1e-6)
    thin = boxes(7, 1000) * [1, 1, 1, 1, 1e-9, 1, 1]
    assert bev_intersection(thin, boxes(8, 1000)) == pytest.approx(clipped(thin, boxes(8, 1000)), abs=1e-9)
    empty = box(length=0.0, width=0.0, height=0.0)
    assert [float(one[0]) for one in overlaps(empty, empty)] == [0.0, 0.0]
    assert [float(one[0]) for one in overlaps(empty, box())] == [0.0, 0.0]


@settings(max_examples=60, deadline=None)
@given(*[st.floats(-3, 3) for _ in range(4)], *[st.floats(0.1, 5) for _ in range(6)], st.integers(0, 3))
def test_boxes_along_the_axes_have_a_closed_form(x, y, z, gap, l1, w1, h1, l2, w2, h2, quarter):
    one, other = box(0, 0, 0, l1, w1, h1), box(x, y, z + gap, l2, w2, h2, quarter * np.pi / 2)
    if quarter % 2:
        l2, w2 = w2, l2
    sides = [max(0.0, min(p / 2, c + q / 2) - max(-p / 2, c - q / 2)) for c, p, q in ((x, l1, l2), (y, w1, w2))]
    high = max(0.0, min(h1, z + gap + h2) - max(0.0, z + gap))
    area, volume = sides[0] * sides[1], sides[0] * sides[1] * high
    bev, space = overlaps(one, other)
    assert bev_intersection(one, other)[0] == pytest.approx(area, abs=1e-9)
    assert bev[0] == pytest.approx(area / (l1 * w1 + l2 * w2 - area), abs=1e-9)
    assert space[0] == pytest.approx(volume / (l1 * w1 * h1 + l2 * w2 * h2 - volume), abs=1e-9)


def test_a_fine_grid_of_points_counts_the_same_share():
    one, other = box(0.3, -0.2, 0.1, 4.1, 1.8, 1.6, 0.7), box(0.9, 0.4, -0.2, 3.5, 2.2, 1.9, -0.4)
    axes = [np.arange(-3, 4, 0.02), np.arange(-3, 4, 0.02), np.arange(-1, 3, 0.02)]
    x, y = np.meshgrid(*axes[:2], indexing="ij")

    def inside(b: np.ndarray) -> np.ndarray:
        dx, dy, cos, sin = x - b[0, 0], y - b[0, 1], np.cos(b[0, 6]), np.sin(b[0, 6])
        return (abs(cos * dx + sin * dy) <= b[0, 3] / 2) & (abs(cos * dy - sin * dx) <= b[0, 4] / 2)

    def levels(b: np.ndarray) -> np.ndarray:
        return (axes[2] >= b[0, 2]) & (axes[2] <= b[0, 2] + b[0, 5])

    flat = [(inside(one) & inside(other)).sum(), (inside(one) | inside(other)).sum()]
    both = flat[0] * (levels(one) & levels(other)).sum()
    volumes = sum(inside(b).sum() * levels(b).sum() for b in (one, other))
    bev, space = overlaps(one, other)
    assert bev[0] == pytest.approx(flat[0] / flat[1], abs=1e-2)
    assert space[0] == pytest.approx(both / (volumes - both), abs=1e-2)


def test_overlap_is_symmetric_and_moves_with_the_boxes():
    a, b = boxes(9, 2000), boxes(10, 2000)
    found = overlaps(a, b)
    for one, other in zip(found, overlaps(b, a)):
        assert one == pytest.approx(other, abs=1e-12)
    turn, shift = 1.234, np.array([20.0, -7.0])
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    moved = [np.concatenate((p[:, :2] @ matrix.T + shift, p[:, 2:6], p[:, 6:] + turn), 1) for p in (a, b)]
    for one, other in zip(found, overlaps(*moved)):
        assert one == pytest.approx(other, abs=1e-12)


def test_every_pair_of_two_sets_is_what_pairs_are():
    a, b = boxes(11, 7), boxes(12, 11)
    bev, space = bev_iou(a, b), iou_3d(a, b)
    assert bev.shape == space.shape == (7, 11)
    for i in range(7):
        for j in range(11):
            one, other = overlaps(a[i : i + 1], b[j : j + 1])
            assert (bev[i, j], space[i, j]) == pytest.approx((one[0], other[0]), abs=1e-12)


def test_corners_run_counter_clockwise_from_the_front_left():
    corners = bev_corners(box(1.0, 2.0, yaw=np.pi / 2))[0]
    assert corners == pytest.approx(np.array([(0.0, 4.0), (0.0, 0.0), (2.0, 0.0), (2.0, 4.0)]), abs=1e-12)
    for one in boxes(13, 20):
        assert Polygon(bev_corners(one[None])[0]).exterior.is_ccw


def test_more_pairs_than_are_held_at_once_and_none(monkeypatch):
    a, b = boxes(14, 500), boxes(15, 500)
    whole = bev_intersection(a, b)
    monkeypatch.setattr("limbeck.pointcloud.boxes._CHUNK", 7)
    assert bev_intersection(a, b) == pytest.approx(whole, abs=1e-12)
    none = np.zeros((0, 7))
    assert bev_iou(none, a).shape == (0, 500)
    assert iou_3d(a, none).shape == (500, 0)
    assert [len(one) for one in overlaps(none, none)] == [0, 0]


def test_float32_boxes_are_compared_in_float64():
    a = boxes(16, 100).astype(np.float32)
    assert overlaps(a, a)[0].dtype == np.float64
    assert overlaps(a, a)[1] == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (np.zeros((3, 6)), np.zeros((3, 7)), r"boxes are \(M, 7\).*got \(3, 6\)"),
        (np.zeros(7), np.zeros((1, 7)), r"got \(7,\)"),
        (np.zeros((3, 7)), np.zeros((2, 7)), "row by row; got 3 and 2"),
    ],
)
def test_wrong_shapes_are_user_errors(first, second, said):
    with pytest.raises(ShapeMismatch, match=said):
        overlaps(first, second)
