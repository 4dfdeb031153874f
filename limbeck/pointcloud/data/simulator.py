"""A seeded LiDAR simulator: labelled scenes as KITTI's, by casting a HDL-64E's rays at simple shapes.

Simulated scenes are for comparing methods; figures on them say nothing of real streets and are named *simulated*.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from limbeck.engine.data import SPLITS, check_split
from limbeck.engine.weights import sha256_json
from limbeck.errors import ConfigError, UnknownName
from limbeck.pointcloud.data._rays import Beams, Ground, Hits, Parts, all_hits, beams, joined, nearest
from limbeck.pointcloud.data._shapes import SHAPES, clutter_parts, object_parts
from limbeck.pointcloud.data.frames import Calibration, Frame, boxes_fault, default_calibration
from limbeck.pointcloud.data.layouts import KittiLayouts, Layout, TableLayouts

GENERATOR = "lidar-1"  # changed whenever the same arguments give other scenes
RANGE_NOISE = 0.02  # metres, standard deviation
FARTHEST = 80.0  # metres
COUNTS = {"train": 300, "val": 60, "test": 200}
_SALT = 0x11DA2
_OCCLUDED = (0.2, 0.5)  # shares of hidden rays from which an object is partly and largely occluded
_LOST = 0.04  # share of rays that do not come back whatever they meet
_REACH = 72.0  # metres at which a perpendicular surface of reflectance 0.3 answers about 63 % of the rays
_GROUND_LIGHT = 0.2
_CAMERA = default_calibration()


def simulate(
    seed: int | Sequence[int],
    *,
    layout: Layout | None = None,
    wanted: str | None = None,
    calibration: Calibration = _CAMERA,
    name: str = "",
) -> Frame:
    """A labelled scene; the same arguments give the same one, bit for bit.

    Points are those that the image shows, as in KITTI's reduced clouds. Objects without a point are left out.
    Truncation is the share of the projected box outside the image; occlusion is 0, 1 or 2 where under 20 %, under 50 %
    or more of the rays that would meet the object meet another thing before.

    Args:
        seed: one or several numbers, 0 or more.
        layout: objects, which are put onto the ground; None draws one of `TableLayouts`.
        wanted: a class that the drawn layout has to have.
        calibration: of the camera that decides what is seen; it looks along x.
        name: id of the frame; empty for one of the seed.
    Raises: ConfigError for a seed below 0 or a box of no size; UnknownName for an object of an unknown type.
    """
    seeds = [seed] if isinstance(seed, int) else list(seed)
    if not seeds or min(seeds) < 0:
        raise ConfigError(f"seed of a simulated scene is one number or several, 0 or more; got {seed}")
    rng = np.random.default_rng([_SALT, *seeds])
    if layout is None:
        layout = _layouts("table", "train", None).draw(rng, wanted)
    ground = _ground(rng)
    _check_layout(layout)
    boxes = layout.boxes.astype(np.float64, copy=True)
    boxes[:, 2] = ground.height(boxes[:, :2])
    parts = joined([object_parts(layout.names, boxes, rng), clutter_parts(boxes, ground, rng)])
    rays = beams(phase=rng.random())
    hits = all_hits(rays, parts, rng)
    distance, first = nearest(hits, len(rays.directions))
    points, owners = _returns(rays, parts, hits, distance, first, ground, rng)
    shown = calibration.in_image(points)
    points, owners = points[shown], owners[shown]
    frame = Frame(
        id=name or "sim-" + "-".join(map(str, seeds)),
        points=points,
        calibration=calibration,
        **_labels(layout, boxes, calibration, _hidden(rays, parts, hits, distance, calibration, len(boxes))),
    )
    return frame.select(np.bincount(owners[owners >= 0], minlength=len(boxes)) > 0)


def _check_layout(layout: Layout) -> None:
    for name in layout.names:
        if name not in SHAPES:
            raise UnknownName("type", name, SHAPES, "of an object of a layout")
    fault = boxes_fault(layout.boxes)
    if fault is None and len(layout.boxes) != len(layout.names):
        fault = f"{len(layout.boxes)} boxes have {len(layout.names)} names"
    if fault is not None:
        raise ConfigError(f"of a layout {fault}")


def _ground(rng: np.random.Generator) -> Ground:
    length, angle = rng.uniform(15.0, 50.0, 3), rng.uniform(0.0, 2 * np.pi, 3)
    waves = 2 * np.pi / length[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    tilt = rng.normal(0.0, (0.004, 0.012))
    return Ground(tilt, rng.uniform(0.005, 0.03, 3), waves, rng.uniform(0.0, 2 * np.pi, 3))


def _returns(
    rays: Beams,
    parts: Parts,
    hits: Hits,
    distance: np.ndarray,
    first: np.ndarray,
    ground: Ground,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Points float32 (P, 4) that come back, and the object of each, −1 for none; (P,)."""
    count = len(distance)
    to_ground = ground.distances(rays.directions)
    meets_part = distance < to_ground
    reach = np.where(meets_part, distance, to_ground)
    part = hits.parts[first[meets_part]]
    owners, light = np.full(count, -1), np.full(count, _GROUND_LIGHT)
    owners[meets_part], light[meets_part] = parts.owners[part], parts.reflectance[part]
    light = np.clip(light * rng.normal(1.0, 0.2, count), 0.01, 0.99)
    # Roads answer weakly at a flat angle, walls and objects hardly so.
    facing = np.where(meets_part, 1.0, np.sqrt(np.clip(-rays.directions[:, 2] * 8, 0.05, 1.0)))
    safe = np.minimum(reach, 1e3)
    answer = (1 - _LOST) * (1 - np.exp(-(light / 0.3) * facing * (_REACH / safe) ** 2))
    back = np.flatnonzero((reach < FARTHEST) & (rng.random(count) < answer))
    noisy = reach[back] + rng.normal(0.0, RANGE_NOISE, len(back))
    points = np.concatenate([noisy[:, None] * rays.directions[back], np.round(light[back, None], 2)], 1)
    return points.astype(np.float32), owners[back]


def _hidden(
    rays: Beams, parts: Parts, hits: Hits, distance: np.ndarray, calibration: Calibration, objects: int
) -> np.ndarray:
    """Share (M,) of the rays within the image that would meet an object and meet another thing before."""
    owners = parts.owners[hits.parts]
    mine = np.flatnonzero(owners >= 0)
    seen = calibration.in_image(hits.distance[mine, None] * rays.directions[hits.rays[mine]])
    mine = mine[seen]
    pairs = owners[mine] * len(distance) + hits.rays[mine]
    first = hits.distance[mine] == distance[hits.rays[mine]]
    all_rays = np.bincount(np.unique(pairs) // len(distance), minlength=objects)
    free_rays = np.bincount(np.unique(pairs[first]) // len(distance), minlength=objects)
    return 1 - free_rays / np.maximum(all_rays, 1)


def _labels(layout: Layout, boxes: np.ndarray, calibration: Calibration, hidden: np.ndarray) -> dict[str, Any]:
    whole = calibration.project(boxes)
    cut = calibration.clipped(whole)
    areas = [np.prod(box[:, 2:] - box[:, :2], axis=1) for box in (whole, cut)]
    truncated = 1 - areas[1] / np.maximum(areas[0], 1e-9)
    return {
        "boxes": boxes.astype(np.float32),
        "names": layout.names,
        "truncated": np.round(truncated, 2).astype(np.float32),
        "occluded": np.searchsorted(_OCCLUDED, hidden, side="right").astype(np.int64),
        "bboxes": cut.astype(np.float32),
    }


class SimulatedScenes:
    """The scenes of a split; `scenes[i]` depends on split, seed, layouts and i alone.

    Every second scene has a cyclist or a pedestrian, in turn, which most of KITTI's frames have not: so that 200 test
    scenes hold at least 60 of each class at moderate. [assume: in every split, for training and test to be alike]

    Args:
        split: 'train', 'val' or 'test'.
        seed: another one makes other scenes.
        count: how many; None for 300, 60 and 200.
        layouts: 'table' draws them from counts of KITTI's labels; 'real' takes those labels' own boxes, of the official
            train ids for train and val, of val ids for test.
        root: folder of the real layouts; None looks in $LIMBECK_DATA/lidar_kitti and in the cache folder.
    Raises: UnknownName, ConfigError; DataMissing and CorruptFile for real layouts.

    Attributes:
        content_hash: of the generator, its arguments and the layouts; known before a scene is made.
    """

    def __init__(
        self,
        split: str,
        *,
        seed: int = 0,
        count: int | None = None,
        layouts: str = "table",
        root: str | None = None,
    ) -> None:
        check_split(split, "simulated scenes")
        if seed < 0:
            raise ConfigError(f"seed of simulated scenes is 0 or more; got {seed}")
        self.split, self.seed = split, seed
        self.count = COUNTS[split] if count is None else count
        if self.count < 1:
            raise ConfigError(f"count of simulated scenes is at least 1; got {count}")
        self._source = _layouts(layouts, split, root)
        self.content_hash = sha256_json(
            {
                "generator": GENERATOR,
                "split": split,
                "seed": seed,
                "count": self.count,
                "layouts": layouts,
                "source": self._source.content_hash,
            }
        )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Frame:
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        seeds = [self.seed, SPLITS.index(self.split), index]  # type: ignore[arg-type]  # checked above
        wanted = (None, "Cyclist", None, "Pedestrian")[index % 4]
        layout = self._source.draw(np.random.default_rng([_SALT + 1, *seeds]), wanted)
        return simulate(seeds, layout=layout, name=f"{self.split}-{index:05d}")


def _layouts(kind: str, split: str, root: str | None) -> TableLayouts | KittiLayouts:
    if kind == "table":
        return TableLayouts()
    if kind == "real":
        return KittiLayouts(split, root)
    raise UnknownName("layouts", kind, ["table", "real"], "of simulated scenes")
