"""Augmentation of clouds with their boxes: mirrored, turned and scaled as one; pure functions of float arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from limbeck.errors import ConfigError
from limbeck.pointcloud.data.frames import wrapped

Pair = tuple[np.ndarray, np.ndarray]


def flipped(points: np.ndarray, boxes: np.ndarray) -> Pair:
    """Left and right exchanged: y and yaw change sign. Args: points (P, ≥ 3). boxes (M, 7)."""
    points, boxes = points.copy(), boxes.copy()
    points[:, 1] *= -1
    boxes[:, (1, 6)] *= -1
    return points, boxes


def turned(points: np.ndarray, boxes: np.ndarray, angle: float) -> Pair:
    """Turned about z by an angle in radians, counter-clockwise; yaw is brought into [−π, π)."""
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[cos, sin], [-sin, cos]])
    points, boxes = points.copy(), boxes.copy()
    points[:, :2] = points[:, :2].astype(np.float64) @ turn
    boxes[:, :2] = boxes[:, :2].astype(np.float64) @ turn
    boxes[:, 6] = wrapped(boxes[:, 6].astype(np.float64) + angle)
    return points, boxes


def scaled(points: np.ndarray, boxes: np.ndarray, factor: float) -> Pair:
    """Coordinates and sizes times a factor; the sensor stays the origin."""
    points, boxes = points.copy(), boxes.copy()
    points[:, :3] *= factor
    boxes[:, :6] *= factor
    return points, boxes


def in_range(points: np.ndarray, boxes: np.ndarray, extent: Sequence[float]) -> Pair:
    """Which points lie in a range, bool (P,), and which boxes have their centre in it, seen from above, bool (M,).

    Args:
        extent: x, y, z from, then x, y, z to, in metres; the lower ends belong to it.
    Raises: ConfigError unless these are six numbers in order.
    """
    low, high = _checked_extent(extent)
    xyz = points[:, :3]
    centres = boxes[:, :2]
    inside = np.logical_and(xyz >= low, xyz < high).all(1)
    return np.asarray(inside), np.asarray(np.logical_and(centres >= low[:2], centres < high[:2]).all(1))


def _checked_extent(extent: Sequence[float]) -> Pair:
    found = np.asarray(extent, np.float64)
    if found.shape != (6,) or not np.isfinite(found).all() or (found[:3] >= found[3:]).any():
        raise ConfigError(f"a range is x, y, z from and x, y, z to, in metres, each from below to; got {list(extent)}")
    return found[:3], found[3:]


@dataclass(frozen=True, slots=True)
class FlipTurnScale:
    """Mirrors by chance, turns and scales by random amounts; cloud and boxes alike.

    Args:
        flip: probability. turn: largest angle in radians, to either side; a range as narrow as the desk's bears less
            than KITTI's usual π/4. [assume] scale: smallest and largest factor.
    Raises: ConfigError.
    """

    flip: float = 0.5
    turn: float = math.pi / 8
    scale: Sequence[float] = (0.95, 1.05)

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise ConfigError(f"augment flip is a probability, 0 to 1; got {self.flip}")
        if not 0 <= self.turn <= math.pi:
            raise ConfigError(f"augment turn is an angle in radians, 0 to π; got {self.turn}")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError(f"augment scale is (smallest, largest) factor, both above 0; got {tuple(self.scale)}")

    def __call__(self, points: np.ndarray, boxes: np.ndarray, rng: np.random.Generator) -> Pair:
        """Points (P, ≥ 3) and boxes (M, 7), augmented; three numbers are drawn, whatever the options."""
        chance, way, size = rng.random(3)
        if chance < self.flip:
            points, boxes = flipped(points, boxes)
        points, boxes = turned(points, boxes, (2 * way - 1) * self.turn)
        return scaled(points, boxes, self.scale[0] + size * (self.scale[1] - self.scale[0]))
