"""Pictures from above: where metres lie in pixels, and which colours points, cells, boxes and texts leave there."""

from __future__ import annotations

import numpy as np
import pytest

from limbeck.pointcloud.bev import GREYS, HEIGHTS, PAPER, BirdsEye, readable_on
from limbeck.pointcloud.boxes import bev_corners

EXTENT = (0.0, -20.0, -3.0, 40.0, 20.0, 1.0)
RED = (200, 0, 0)


def colours(view: BirdsEye) -> np.ndarray:
    return np.asarray(view.image())


def test_x_points_upwards_and_y_to_the_left() -> None:
    view = BirdsEye((0, -10, -3, 40, 10, 1), longest=400)
    assert view.size == (200, 400)
    corners = [[40, 10], [40, -10], [0, 10], [0, 0]]
    assert view.pixels(np.array(corners)).tolist() == [[0, 0], [200, 0], [0, 400], [100, 400]]
    assert colours(view).shape == (400, 200, 3)


def test_points_are_grey_by_height_and_the_highest_is_seen() -> None:
    view = BirdsEye(EXTENT, longest=400)
    places = [(10.05, 5.05), (20.05, -5.05), (30.05, 0.05)]
    heights = [(HEIGHTS[0] - 1,), (HEIGHTS[1] + 1,), (HEIGHTS[1], HEIGHTS[0])]  # the last is two points
    view.points(np.array([(x, y, z, 0.5) for (x, y), zs in zip(places, heights) for z in zs]))
    found = colours(view)
    for place, grey in zip(places, (GREYS[0], GREYS[1], GREYS[1])):
        column, row = view.pixels(np.array(place)).astype(int)
        assert found[row - 1 : row + 2, column - 1 : column + 2].min() == grey
    assert (found != PAPER).any(2).sum() <= 3 * 9


def test_points_out_of_sight_are_left_out() -> None:
    view = BirdsEye(EXTENT, longest=400)
    view.points(np.array([[-5.0, 0, 0, 0], [41, 0, 0, 0], [10, 25, 0, 0], [10, -25, 0, 0]]))
    assert (colours(view) == PAPER).all()


def test_cells_fill_their_rectangle() -> None:
    view = BirdsEye(EXTENT, longest=400)
    view.cells(np.array([[10.5, 5.5]]), (1.0, 2.0), np.array([RED], np.uint8))
    rows, columns = np.nonzero((colours(view) == RED).all(2))
    assert (rows.min(), rows.max() + 1) == (290, 300)  # x from 10 to 11
    assert (columns.min(), columns.max() + 1) == (135, 155)  # y from 4.5 to 6.5


@pytest.mark.parametrize("yaw", [0.0, 0.7, -2.0])
def test_outline_runs_through_the_corners_and_the_front_is_marked(yaw: float) -> None:
    view = BirdsEye(EXTENT, longest=800)
    box = np.array([[20.0, 3.0, -1.7, 6.0, 3.0, 1.5, yaw]])
    view.boxes(box, [RED])
    drawn = (np.abs(colours(view).astype(int) - RED) < 60).all(2)
    corners = bev_corners(box)[0]
    middle = box[0, :2]

    def hit(place: np.ndarray) -> bool:
        column, row = view.pixels(place).astype(int)
        return bool(drawn[row - 2 : row + 3, column - 2 : column + 3].any())

    sides = [(a + share * (b - a)) for a, b in zip(corners, np.roll(corners, -1, 0)) for share in np.linspace(0, 1, 9)]
    assert all(hit(place) for place in sides)
    ahead = middle + 1.5 * np.array([np.cos(yaw), np.sin(yaw)])
    assert hit(ahead)
    assert not hit(2 * middle - ahead)


def test_dashed_outline_has_gaps() -> None:
    box = np.array([[20.0, 3.0, -1.7, 12.0, 9.0, 1.5, 0.4]])
    counts = []
    for dashed in (False, True):
        view = BirdsEye(EXTENT, longest=400)
        view.boxes(box, [RED], dashed=dashed)
        counts.append(int((colours(view) != PAPER).any(2).sum()))
    assert 0.3 * counts[0] < counts[1] < 0.8 * counts[0]


def test_texts_stand_on_a_plate_inside_the_picture() -> None:
    view = BirdsEye(EXTENT, longest=400)
    view.boxes(np.array([[39.5, 19.5, 0, 2.0, 2.0, 1, 0]]), [RED], ["0.97"])
    assert (colours(view)[:14, :25] == RED).all(2).sum() > 100


def test_rings_are_ten_metres_apart() -> None:
    view = BirdsEye(EXTENT, longest=400)
    view.rings()
    found = colours(view)
    for ring in (10, 20, 30):
        column, row = view.pixels(ring * np.array([np.cos(0.5), np.sin(0.5)])).astype(int)
        assert (found[row - 2 : row + 3, column - 2 : column + 3] != PAPER).any()
    column, row = view.pixels(15 * np.array([np.cos(0.5), np.sin(0.5)])).astype(int)
    assert (found[row - 2 : row + 3, column - 2 : column + 3] == PAPER).all()


def test_ink_is_readable() -> None:
    assert sum(readable_on((255, 255, 0))) < 200 < sum(readable_on((0, 0, 120)))
