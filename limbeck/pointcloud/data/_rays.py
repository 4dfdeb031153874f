"""The beams of a LiDAR, and where they meet boxes, cylinders, ellipsoids and the ground; the sensor is the origin."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

BOX, CYLINDER, ELLIPSOID = 0, 1, 2
# The two blocks of a HDL-64E: 32 beams a third of a degree apart, 32 half a degree apart.
ELEVATIONS = np.radians(np.concatenate([np.linspace(2.0, -8.33, 32), np.linspace(-8.87, -24.8, 32)]))
AZIMUTH_STEP = np.radians(0.1728)  # 2,083 firings a turn at 10 Hz
LOWEST = np.radians(-17.0)  # what lies below is under the edge of KITTI's image
WIDEST = np.radians(41.5)  # of KITTI's image, to either side
SENSOR_HEIGHT = 1.73  # metres
_LEAST_DISTANCE = 0.5  # metres; a part that comes nearer holds the sensor and is left out
_CHUNK = 1 << 18  # pairs of a ray and a part at once


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """K solid shapes.

    Args:
        centres, halves: float64 (K, 3), metres; the half sizes are along the part's own axes.
        yaws: (K,). kinds: (K,), BOX, CYLINDER (upright) or ELLIPSOID.
        owners: (K,), index of the object it belongs to, or −1.
        reflectance: (K,), in [0, 1].
        porous: (K,), share of the rays that pass through.
        depth: (K,), how far into the part a ray may reach, as a share of its way through; 0 for a solid surface.
    """

    centres: np.ndarray
    halves: np.ndarray
    yaws: np.ndarray
    kinds: np.ndarray
    owners: np.ndarray
    reflectance: np.ndarray
    porous: np.ndarray
    depth: np.ndarray

    def __len__(self) -> int:
        return len(self.yaws)


def joined(parts: list[Parts]) -> Parts:
    """All of them as one."""
    return Parts(*(np.concatenate([getattr(one, field.name) for one in parts]) for field in fields(Parts)))


@dataclass(frozen=True, slots=True, eq=False)
class Beams:
    """One ray for each elevation and azimuth.

    Args:
        elevations: (B,), radians, from high to low. azimuths: (C,), radians, ascending in equal steps.
        directions: unit vectors, float64 (B · C, 3), row by row.
    """

    elevations: np.ndarray
    azimuths: np.ndarray
    directions: np.ndarray


def beams(phase: float = 0.0, widest: float = WIDEST, step: float = AZIMUTH_STEP) -> Beams:
    """The beams that KITTI's camera may see. Args: phase: in [0, 1), of a step, by which all azimuths are turned."""
    elevations = ELEVATIONS[ELEVATIONS >= LOWEST]
    azimuths = (np.arange(-np.floor(widest / step), np.floor(widest / step)) + phase) * step
    flat = np.cos(elevations)[:, None]
    shape = (len(elevations), len(azimuths))
    columns = [flat * np.cos(azimuths), flat * np.sin(azimuths), np.broadcast_to(np.sin(elevations)[:, None], shape)]
    return Beams(elevations, azimuths, np.stack(columns, -1).reshape(-1, 3))


class Hits(NamedTuple):
    """N meetings of a ray and a part: indices of both and the distance in metres, all (N,)."""

    rays: np.ndarray
    parts: np.ndarray
    distance: np.ndarray


def all_hits(rays: Beams, parts: Parts, dice: np.random.Generator) -> Hits:
    """Every ray's meeting with every part, of the pairs that can meet; each part lets its share of rays pass."""
    rows, columns, sizes = _windows(rays, parts)
    counts = sizes[:, 0] * sizes[:, 1]
    chunks = np.split(np.arange(len(parts)), np.flatnonzero(np.diff(np.cumsum(counts) // _CHUNK)) + 1)
    found = []
    for chosen in chunks:
        which = np.repeat(chosen, counts[chosen])
        within = np.arange(len(which)) - np.repeat(np.cumsum(counts[chosen]) - counts[chosen], counts[chosen])
        down, right = np.divmod(within, np.maximum(sizes[which, 1], 1))
        ray = (rows[which] + down) * len(rays.azimuths) + columns[which] + right
        near, far = intersect(rays.directions[ray], parts, which)
        met = np.flatnonzero(near < far)
        ray, which, near, far = ray[met], which[met], near[met], far[met]
        luck = dice.random((2, len(met)))
        distance = near + parts.depth[which] * luck[0] * (far - near)
        kept = luck[1] >= parts.porous[which]
        found.append(Hits(ray[kept], which[kept], distance[kept]))
    return Hits(*(np.concatenate(column) for column in zip(*found))) if found else _none()


def _none() -> Hits:
    return Hits(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))


def nearest(hits: Hits, rays: int) -> tuple[np.ndarray, np.ndarray]:
    """Distance (R,) to the first meeting of each ray, ∞ where there is none, and its index into `hits`, −1 for none."""
    distance = np.full(rays, np.inf)
    np.minimum.at(distance, hits.rays, hits.distance)
    index = np.full(rays, -1)
    first = np.flatnonzero(hits.distance == distance[hits.rays])
    index[hits.rays[first]] = first
    return distance, index


def intersect(directions: np.ndarray, parts: Parts, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where rays enter and leave parts.

    Args:
        directions: unit vectors (N, 3) from the origin. which: (N,), a part for each ray.
    Returns: distances (N,) and (N,); the first is not below the second where they do not meet.
    """
    cos, sin = np.cos(parts.yaws), np.sin(parts.yaws)
    x, y, z = parts.centres.T
    sensor = -np.stack([cos * x + sin * y, cos * y - sin * x, z]) / parts.halves.T  # in units of the half sizes
    cos, sin = cos[which], sin[which]
    halves = parts.halves[which]
    along = (cos * directions[:, 0] + sin * directions[:, 1]) / halves[:, 0]
    across = (cos * directions[:, 1] - sin * directions[:, 0]) / halves[:, 1]
    way = np.stack([along, across, directions[:, 2] / halves[:, 2]])
    start = sensor[:, which]
    with np.errstate(divide="ignore", invalid="ignore"):
        one, other = (-1 - start) / way, (1 - start) / way
    near, far = np.fmin(one, other), np.fmax(one, other)
    enter, leave = near.max(0), far.min(0)
    rest = np.flatnonzero(parts.kinds[which] != BOX)
    lids = near[2, rest], far[2, rest]
    enter[rest], leave[rest] = _round(start[:, rest], way[:, rest], parts.kinds[which[rest]] == CYLINDER, lids)
    return np.where(enter > 0, enter, np.inf), leave


def _round(
    start: np.ndarray, way: np.ndarray, upright: np.ndarray, lids: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Of unit spheres and, where `upright`, of unit circles between the lids: roots of |start + t · way|² = 1."""
    axes = np.where(upright, 0.0, 1.0)
    a = way[0] ** 2 + way[1] ** 2 + axes * way[2] ** 2
    half_b = start[0] * way[0] + start[1] * way[1] + axes * start[2] * way[2]
    c = start[0] ** 2 + start[1] ** 2 + axes * start[2] ** 2 - 1
    square = half_b**2 - a * c
    root = np.sqrt(np.maximum(square, 0))
    enter, leave = (-half_b - root) / a, (-half_b + root) / a
    enter = np.where(upright, np.maximum(enter, lids[0]), enter)
    leave = np.where(upright, np.minimum(leave, lids[1]), leave)
    return np.where(square > 0, enter, np.inf), leave


def _windows(rays: Beams, parts: Parts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First row and column (K,) and size (K, 2) of the block of rays that can meet each part."""
    cos, sin = np.cos(parts.yaws)[:, None], np.sin(parts.yaws)[:, None]
    ahead = parts.halves[:, :1] * (1, 1, -1, -1)
    aside = parts.halves[:, 1:2] * (1, -1, -1, 1)
    corners = np.stack([cos * ahead - sin * aside, sin * ahead + cos * aside], -1) + parts.centres[:, None, :2]
    middle = np.arctan2(parts.centres[:, 1], parts.centres[:, 0])
    angles = np.arctan2(corners[..., 1], corners[..., 0]) - middle[:, None]
    angles = (angles + np.pi) % (2 * np.pi) - np.pi + middle[:, None]
    step = rays.azimuths[1] - rays.azimuths[0]
    first = np.clip(np.floor((angles.min(1) - rays.azimuths[0]) / step), 0, len(rays.azimuths)).astype(np.int64)
    last = np.clip(np.ceil((angles.max(1) - rays.azimuths[0]) / step) + 1, 0, len(rays.azimuths)).astype(np.int64)
    nearest_, farthest = _distances(corners)
    bottom, top = (parts.centres[:, 2] + sign * parts.halves[:, 2] for sign in (-1, 1))
    high = np.arctan2(top, np.where(top > 0, nearest_, farthest))
    low = np.arctan2(bottom, np.where(bottom > 0, farthest, nearest_))
    start = np.searchsorted(-rays.elevations, -high - 1e-9)
    stop = np.searchsorted(-rays.elevations, -low + 1e-9)
    sizes = np.stack([np.maximum(stop - start, 0), np.maximum(last - first, 0)], 1)
    return start, first, np.where((nearest_ >= _LEAST_DISTANCE)[:, None], sizes, 0)


def _distances(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance (K,) of the origin to the nearest and farthest point of rectangles (K, 4, 2); 0 where it lies inside."""
    along = np.roll(corners, -1, axis=1) - corners
    share = np.clip(-(corners * along).sum(-1) / (along**2).sum(-1), 0, 1)
    edge = np.linalg.norm(corners + share[..., None] * along, axis=-1).min(1)
    turns = np.sign(corners[..., 0] * along[..., 1] - corners[..., 1] * along[..., 0])
    inside = np.abs(turns.sum(1)) == 4
    return np.where(inside, 0.0, edge), np.linalg.norm(corners, axis=-1).max(1)


@dataclass(frozen=True, slots=True, eq=False)
class Ground:
    """A tilted plane with waves, 1.73 m below the sensor.

    z = −1.73 + a·x + b·y + Σ_i h_i (sin(k_i · (x, y) + φ_i) − sin φ_i)

    Args:
        tilt: (2,), a and b. heights: (W,), h in metres. waves: (W, 2), k in radians a metre. phases: (W,), φ.
    """

    tilt: np.ndarray
    heights: np.ndarray
    waves: np.ndarray
    phases: np.ndarray

    def height(self, xy: np.ndarray) -> np.ndarray:
        """z (N,) of the ground at (N, 2)."""
        swing = np.sin(xy @ self.waves.T + self.phases) - np.sin(self.phases)
        return xy @ self.tilt - SENSOR_HEIGHT + swing @ self.heights

    def distances(self, directions: np.ndarray, tolerance: float = 0.01) -> np.ndarray:
        """Metres (N,) along rays (N, 3) to the ground, by Newton's method; ∞ where there is none within 120 m."""
        slope = np.minimum(directions[:, 2], -1e-3)
        found = np.minimum(-SENSOR_HEIGHT / slope, 120.0)
        for _ in range(4):
            xy = found[:, None] * directions[:, :2]
            turn = xy @ self.waves.T + self.phases
            swing = (np.sin(turn) - np.sin(self.phases)) @ self.heights
            gap = found * directions[:, 2] - (xy @ self.tilt - SENSOR_HEIGHT + swing)
            rise = directions[:, 2] - directions[:, :2] @ self.tilt
            rise -= ((np.cos(turn) * self.heights) * (directions[:, :2] @ self.waves.T)).sum(1)
            found = np.clip(found - gap / np.minimum(rise, -1e-3), 0.5, 130.0)
        missed = np.abs(found * directions[:, 2] - self.height(found[:, None] * directions[:, :2])) > tolerance
        return np.where(missed | (found > 120.0), np.inf, found)
