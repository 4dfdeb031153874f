"""Overlaps of upright boxes that are turned about the vertical axis, in float64 and for many pairs at once.

A box is x, y, z of its bottom centre, length along its own x axis, width, height, yaw about z, counter-clockwise;
metres and radians. Seen from above (BEV) it is a rotated rectangle.
"""

from __future__ import annotations

import numpy as np

from limbeck.errors import ShapeMismatch

BOX = 7  # numbers that make a box
_CHUNK = 32768  # pairs whose clipped polygons are held at once


def bev_corners(boxes: np.ndarray) -> np.ndarray:
    """Corners of boxes seen from above, counter-clockwise from the front left one.

    Args:
        boxes: (M, 7).
    Returns: (M, 4, 2), x and y.
    Raises: ShapeMismatch.
    """
    boxes = _checked(boxes)
    return _turned(_local_corners(boxes), boxes[:, 6]) + boxes[:, None, :2]


def bev_intersection(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Area that the boxes of each pair share when seen from above, by clipping one rectangle by the other's sides.

    Sutherland and Hodgman's polygon clipping (Commun. ACM 17(1), 1974) in the second box's own axes, where it is a
    plain rectangle: coinciding sides are clipped to exactly themselves.

    Args:
        first, second: (P, 7) each; row i of one is compared with row i of the other.
    Returns: (P,) in square metres.
    Raises: ShapeMismatch.
    """
    first, second = _pairs(first, second)
    found = np.zeros(len(first))
    near = np.flatnonzero(_circles_meet(first, second))
    for start in range(0, len(near), _CHUNK):
        rows = near[start : start + _CHUNK]
        a, b = first[rows], second[rows]
        corners = _turned(_local_corners(a), a[:, 6] - b[:, 6])
        corners += _turned((a[:, :2] - b[:, :2])[:, None], -b[:, 6])
        for axis in (0, 1):
            for sign in (1.0, -1.0):
                corners = _clip(corners, axis, sign, b[:, 3 + axis] / 2)
        found[rows] = _area(corners)
    return found


def overlaps(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intersection over union of each pair, seen from above and in space.

    Args:
        first, second: (P, 7) each, row by row.
    Returns: BEV IoU (P,) and 3D IoU (P,), in [0, 1]; 0 where both boxes are empty.
    Raises: ShapeMismatch.
    """
    first, second = _pairs(first, second)
    shared = bev_intersection(first, second)
    areas = [box[:, 3] * box[:, 4] for box in (first, second)]
    tops = np.minimum(first[:, 2] + first[:, 5], second[:, 2] + second[:, 5])
    height = np.maximum(tops - np.maximum(first[:, 2], second[:, 2]), 0.0)
    volumes = areas[0] * first[:, 5] + areas[1] * second[:, 5]
    return _share(shared, areas[0] + areas[1] - shared), _share(shared * height, volumes - shared * height)


def bev_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of every box of one set with every box of another, seen from above.

    Args:
        first: (M, 7). second: (N, 7).
    Returns: (M, N).
    Raises: ShapeMismatch.
    """
    return _every_pair(first, second)[0]


def iou_3d(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of every box of one set with every box of another, in space.

    Args:
        first: (M, 7). second: (N, 7).
    Returns: (M, N).
    Raises: ShapeMismatch.
    """
    return _every_pair(first, second)[1]


def _every_pair(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = _checked(first), _checked(second)
    shape = len(first), len(second)
    bev, space = overlaps(np.repeat(first, shape[1], 0), np.tile(second, (shape[0], 1)))
    return bev.reshape(shape), space.reshape(shape)


def _checked(boxes: np.ndarray) -> np.ndarray:
    boxes = np.asarray(boxes, dtype=np.float64)
    if boxes.ndim != 2 or boxes.shape[1] != BOX:
        raise ShapeMismatch(f"boxes are (M, {BOX}): x y z length width height yaw; got {boxes.shape}")
    return boxes


def _pairs(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = _checked(first), _checked(second)
    if len(first) != len(second):
        raise ShapeMismatch(f"boxes are compared row by row; got {len(first)} and {len(second)} of them")
    return first, second


def _local_corners(boxes: np.ndarray) -> np.ndarray:
    """(M, 4, 2) about the centre, in the box's own axes."""
    return boxes[:, None, 3:5] / 2 * np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)], dtype=np.float64)


def _turned(points: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Points (M, V, 2) turned counter-clockwise by the angle (M,) of their row."""
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    x, y = points[..., 0], points[..., 1]
    return np.stack((cos * x - sin * y, sin * x + cos * y), -1)


def _circles_meet(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(P,) whether the circles about the rectangles overlap: most pairs of a scene need no clipping."""
    reach = np.hypot(first[:, 3], first[:, 4]) / 2 + np.hypot(second[:, 3], second[:, 4]) / 2
    return np.hypot(first[:, 0] - second[:, 0], first[:, 1] - second[:, 1]) < reach


def _clip(polygons: np.ndarray, axis: int, sign: float, limit: np.ndarray) -> np.ndarray:
    """The parts of convex polygons (P, V, 2) where `sign * coordinate <= limit`; (P, V', 2).

    Rows with fewer than V' corners repeat their first one, which adds no area; nothing left is all zeros.
    """
    after = np.roll(polygons, -1, 1)
    over, over_after = (sign * corners[..., axis] - limit[:, None] for corners in (polygons, after))
    inside, crosses = over <= 0, (over <= 0) != (over_after <= 0)
    share = np.divide(over, over - over_after, out=np.zeros_like(over), where=crosses)
    meets = polygons + share[..., None] * (after - polygons)
    meets[..., axis] = sign * limit[:, None]  # exactly on the side, whatever the share was rounded to
    corners = np.stack((polygons, meets), 2).reshape(len(polygons), -1, 2)  # a corner, then where its edge crosses
    kept = np.stack((inside, crosses), 2).reshape(len(polygons), -1)
    most = int(kept.sum(1).max(initial=1))
    order = np.argsort(~kept, axis=1, kind="stable")[:, :most]
    corners, kept = np.take_along_axis(corners, order[..., None], 1), np.take_along_axis(kept, order, 1)
    first = np.where(kept[:, :1, None], corners[:, :1], 0.0)
    return np.where(kept[..., None], corners, first)


def _area(polygons: np.ndarray) -> np.ndarray:
    """Shoelace formula, (P, V, 2) -> (P,); corners run counter-clockwise."""
    x, y = polygons[..., 0], polygons[..., 1]
    return np.maximum((x * np.roll(y, -1, 1) - np.roll(x, -1, 1) * y).sum(1) / 2, 0.0)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Ratio in [0, 1]; rounding may bring it a hair over 1."""
    return np.minimum(np.divide(part, whole, out=np.zeros_like(part), where=whole > 0), 1.0)
