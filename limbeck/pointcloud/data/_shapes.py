"""What a simulated scene is made of: objects as a few simple parts, and the street around them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from limbeck.pointcloud.data._rays import BOX, CYLINDER, ELLIPSOID, Ground, Parts
from limbeck.pointcloud.data.layouts import EGO, footprints_overlap


class Shape(NamedTuple):
    """A part of an object, in shares of the object's box: centre, bottom and top, half length and half width.

    `porous` is the share of rays that pass through, as through glass or spokes.
    """

    kind: int
    x: float
    y: float
    bottom: float
    top: float
    length: float
    width: float
    porous: float = 0.0


# Variants of each of KITTI's types; one is taken for each object.
_CAR = (
    (
        Shape(BOX, 0.0, 0.0, 0.14, 0.60, 0.49, 0.48, 0.4),
        Shape(BOX, -0.06, 0.0, 0.55, 0.99, 0.27, 0.42, 0.5),
        Shape(CYLINDER, 0.30, 0.0, 0.0, 0.2, 0.08, 0.46),
        Shape(CYLINDER, -0.30, 0.0, 0.0, 0.2, 0.08, 0.46),
    ),
    (
        Shape(BOX, 0.0, 0.0, 0.16, 0.62, 0.49, 0.48, 0.4),
        Shape(BOX, -0.15, 0.0, 0.60, 0.99, 0.33, 0.43, 0.5),
        Shape(BOX, 0.30, 0.0, 0.0, 0.2, 0.08, 0.46),
        Shape(BOX, -0.30, 0.0, 0.0, 0.2, 0.08, 0.46),
    ),
)
_PEDESTRIAN = (
    (
        Shape(CYLINDER, 0.20, 0.12, 0.0, 0.5, 0.13, 0.15),
        Shape(CYLINDER, -0.20, -0.12, 0.0, 0.5, 0.13, 0.15),
        Shape(ELLIPSOID, 0.0, 0.0, 0.42, 0.88, 0.30, 0.45),
        Shape(ELLIPSOID, 0.03, 0.0, 0.84, 0.99, 0.15, 0.17),
    ),
    (
        Shape(BOX, 0.0, 0.0, 0.0, 0.5, 0.20, 0.25),
        Shape(CYLINDER, 0.0, 0.0, 0.45, 0.85, 0.26, 0.42),
        Shape(ELLIPSOID, 0.15, 0.38, 0.45, 0.80, 0.25, 0.10),
        Shape(ELLIPSOID, 0.0, 0.0, 0.84, 0.99, 0.15, 0.17),
    ),
)
_CYCLIST = (
    (
        Shape(ELLIPSOID, 0.30, 0.0, 0.0, 0.38, 0.19, 0.06, 0.5),
        Shape(ELLIPSOID, -0.30, 0.0, 0.0, 0.38, 0.19, 0.06, 0.5),
        Shape(BOX, 0.0, 0.0, 0.22, 0.40, 0.28, 0.05),
        Shape(BOX, 0.24, 0.0, 0.48, 0.56, 0.04, 0.45),
        Shape(ELLIPSOID, 0.0, 0.0, 0.20, 0.60, 0.13, 0.30),
        Shape(ELLIPSOID, -0.02, 0.0, 0.50, 0.88, 0.15, 0.42),
        Shape(ELLIPSOID, 0.06, 0.0, 0.85, 0.99, 0.06, 0.17),
    ),
)
_SITTING = (
    (
        Shape(BOX, 0.15, 0.0, 0.0, 0.5, 0.30, 0.40),
        Shape(ELLIPSOID, -0.15, 0.0, 0.35, 0.85, 0.25, 0.45),
        Shape(ELLIPSOID, -0.12, 0.0, 0.80, 0.99, 0.14, 0.18),
    ),
)
_VAN = (
    (
        Shape(BOX, -0.06, 0.0, 0.10, 0.99, 0.43, 0.47),
        Shape(BOX, 0.42, 0.0, 0.10, 0.55, 0.07, 0.46),
    ),
)
_TRUCK = (
    (
        Shape(BOX, 0.38, 0.0, 0.10, 0.80, 0.11, 0.46),
        Shape(BOX, -0.12, 0.0, 0.28, 0.99, 0.37, 0.49),
        Shape(BOX, -0.10, 0.0, 0.05, 0.28, 0.33, 0.30, 0.3),
    ),
)
SHAPES: dict[str, tuple[tuple[Shape, ...], ...]] = {
    "Car": _CAR,
    "Pedestrian": _PEDESTRIAN,
    "Cyclist": _CYCLIST,
    "Person_sitting": _SITTING,
    "Van": _VAN,
    "Truck": _TRUCK,
    "Tram": ((Shape(BOX, 0.0, 0.0, 0.08, 0.99, 0.49, 0.48),),),
    "Misc": ((Shape(BOX, 0.0, 0.0, 0.15, 0.99, 0.48, 0.45),),),
}


_LIGHT = {"Car": (0.0, 0.2), "Van": (0.0, 0.3), "Truck": (0.05, 0.5)}  # paint throws much of a beam elsewhere


def object_parts(names: tuple[str, ...], boxes: np.ndarray, rng: np.random.Generator) -> Parts:
    """The parts of objects, which lie within their boxes (M, 7); reflectance varies little within an object."""
    rows, owners, light = [], [], []
    for owner, name in enumerate(names):
        variants = SHAPES[name]
        chosen = variants[int(rng.integers(len(variants)))]
        rows += chosen
        owners += [owner] * len(chosen)
        light += list(
            np.clip(rng.uniform(*_LIGHT.get(name, (0.1, 0.6))) + rng.uniform(-0.05, 0.05, len(chosen)), 0.02, 0.95)
        )
    shapes = np.array(rows, np.float64).reshape(-1, len(Shape._fields))
    owner = np.array(owners, np.int64)
    box = boxes[owner]
    ahead, aside = shapes[:, 1] * box[:, 3], shapes[:, 2] * box[:, 4]
    cos, sin = np.cos(box[:, 6]), np.sin(box[:, 6])
    up = (shapes[:, 3] + shapes[:, 4]) / 2 * box[:, 5]
    centres = box[:, :3] + np.stack([cos * ahead - sin * aside, sin * ahead + cos * aside, up], 1)
    halves = np.stack([shapes[:, 5], shapes[:, 6], (shapes[:, 4] - shapes[:, 3]) / 2], 1) * box[:, 3:6]
    kinds = shapes[:, 0].astype(np.int64)
    return Parts(centres, halves, box[:, 6], kinds, owner, np.array(light), shapes[:, 7], np.zeros(len(owner)))


class Thing(NamedTuple):
    """A kind of clutter: its shape, how many there are, the spread of sizes in metres, and whether it may hide objects.

    `bottom` is its height above the ground; `offset` the distance from the street's edge, inwards when below 0.
    """

    kind: int
    count: tuple[int, int]
    length: tuple[float, float]
    width: tuple[float, float]
    height: tuple[float, float]
    offset: tuple[float, float]
    bottom: tuple[float, float]
    porous: float
    depth: float
    hides: bool


_FLAT = (0.0, 0.0)
CLUTTER = {
    "facade": Thing(BOX, (3, 14), (5, 20), (3, 8), (3, 9), (1, 9), _FLAT, 0.05, 0.0, False),
    "fence": Thing(BOX, (0, 3), (3, 15), (0.05, 0.2), (0.8, 1.8), (0.5, 5), _FLAT, 0.5, 0.0, False),
    "hedge": Thing(BOX, (2, 9), (2, 12), (0.6, 1.6), (0.8, 2.5), (0.5, 6), _FLAT, 0.2, 0.5, False),
    "bush": Thing(ELLIPSOID, (12, 36), (0.8, 3), (0.8, 3), (0.6, 2.4), (0, 9), _FLAT, 0.35, 0.7, False),
    "weed": Thing(ELLIPSOID, (30, 80), (0.5, 2.5), (0.5, 2.5), (0.1, 0.6), (0, 12), _FLAT, 0.3, 0.8, True),
    "trunk": Thing(CYLINDER, (6, 18), (0.2, 0.7), (0.2, 0.7), (3, 6), (0, 8), _FLAT, 0.0, 0.0, True),
    "crown": Thing(ELLIPSOID, (6, 18), (2, 6), (2, 6), (2, 5), (0, 9), (2.2, 3.2), 0.5, 0.8, True),
    "pole": Thing(CYLINDER, (4, 12), (0.08, 0.3), (0.08, 0.3), (1.2, 6), (-0.5, 3), _FLAT, 0.0, 0.0, True),
    "post": Thing(CYLINDER, (2, 8), (0.25, 0.6), (0.25, 0.6), (1.2, 1.9), (-1.5, 4), _FLAT, 0.0, 0.0, True),
    "crate": Thing(BOX, (1, 6), (0.4, 1.8), (0.4, 1.0), (0.6, 1.7), (-1.5, 5), _FLAT, 0.0, 0.0, True),
}


def clutter_parts(boxes: np.ndarray, ground: Ground, rng: np.random.Generator) -> Parts:
    """Walls, plants, poles and boxes along a street, none of which stands in an object's box (M, 7).

    Large things do not stand between the sensor and the middle of an object, which KITTI would hardly have labelled.
    """
    streets = rng.uniform(3.5, 11.0, 2)
    heading = rng.normal(0.0, 0.06)
    wild = rng.uniform(0.4, 1.6, len(CLUTTER))  # how much of each kind this street has
    rows = [_draw(thing, streets, share, rng) for thing, share in zip(CLUTTER.values(), wild)]
    which = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    found = np.concatenate(rows)  # x, y, bottom, length, width, height, yaw
    cos, sin = np.cos(heading), np.sin(heading)
    found[:, :2] = found[:, :2] @ np.array([[cos, sin], [-sin, cos]])
    found[:, 6] += heading
    things = [list(CLUTTER.values())[k] for k in which]
    high = found[:, 2] > 2.0
    clear = ~footprints_overlap(found, EGO[None], 0.5)[:, 0]
    if len(boxes):
        touching = footprints_overlap(found, boxes, 0.3).any(1)
        hiding = _between(found, boxes[:, :2]).any(1) & ~np.array([thing.hides for thing in things])
        clear &= high | ~(touching | hiding)
    found, which = found[clear], which[clear]
    things = [thing for thing, kept in zip(things, clear) if kept]
    found[:, 2] += ground.height(found[:, :2]) - np.where(high[clear], 0.0, 0.1)  # rooted where the ground slopes
    return Parts(
        centres=found[:, :3] + np.stack([np.zeros(len(found)), np.zeros(len(found)), found[:, 5] / 2], 1),
        halves=found[:, 3:6] / 2,
        yaws=found[:, 6],
        kinds=np.array([thing.kind for thing in things], np.int64),
        owners=np.full(len(found), -1),
        reflectance=rng.uniform(0.04, 0.5, len(found)),
        porous=np.array([thing.porous for thing in things]),
        depth=np.array([thing.depth for thing in things]),
    )


def _draw(thing: Thing, streets: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """(N, 7) of one kind on both sides of a street along x; z is the height above the ground."""
    count = round(share * int(rng.integers(thing.count[0], thing.count[1] + 1)))
    side = rng.integers(0, 2, count)
    length, width, height = (rng.uniform(*spread, count) for spread in (thing.length, thing.width, thing.height))
    offset = streets[side] + rng.uniform(*thing.offset, count) + np.minimum(width / 2, 2.0)
    yaw = rng.normal(0.0, 0.05, count) + np.where(rng.random(count) < 0.15, np.pi / 2, 0.0)
    x, bottom = rng.uniform(3.0, 70.0, count), rng.uniform(*thing.bottom, count)
    return np.stack([x, np.where(side == 1, offset, -offset), bottom, length, width, height, yaw], 1)


def _between(boxes: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Which footprints (K, 7) the straight lines from the sensor to targets (M, 2) cross; bool (K, M)."""
    cos, sin = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
    turn = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], 1)
    start = -np.einsum("kij,kj->ki", turn, boxes[:, :2])[:, None]
    way = np.einsum("kij,mj->kmi", turn, targets)
    with np.errstate(divide="ignore", invalid="ignore"):
        one, other = ((sign * boxes[:, None, 3:5] / 2 - start) / way for sign in (-1, 1))
    enter, leave = np.fmin(one, other).max(-1), np.fmax(one, other).min(-1)
    return (enter < leave) & (leave > 0) & (enter < 1)
