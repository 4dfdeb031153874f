"""Where the objects of a simulated scene stand: drawn from counts of KITTI's labels, or those labels themselves."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from typing import Any

import numpy as np

from limbeck.engine.data_files import (
    check_manifest,
    find_folder,
    read_arrays,
    read_meta,
    remembered_sha256,
    usual_folders,
)
from limbeck.engine.weights import sha256_json
from limbeck.errors import CorruptFile, UnknownName
from limbeck.pointcloud.data.frames import CLASSES, TYPES
from limbeck.pointcloud.data.kitti import read_ids

DESK_RANGE = (0.0, -20.48, 40.96, 20.48)  # metres: x and y from, x and y to
EGO = np.array([-1.0, 0.0, 0.0, 5.0, 2.2, 1.6, 0.0])  # the car that carries the sensor: nothing stands there
GAP = 0.25  # metres between drawn objects, at least
TRIES = 30  # places for an object before it is left out
HELD_OUT = 6  # one of so many training layouts is val's
_FILE = "label_layouts.npz"
ADVICE = (
    "put label_layouts.npz and ImageSets_full/{train,val}.txt into $LIMBECK_DATA/lidar_kitti, or use layouts='table'"
)


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Objects of a scene before it is simulated.

    Args:
        names: M of KITTI's types.
        boxes: float64 (M, 7) as in `Frame`; the simulator puts them onto its ground, whatever their z.
    """

    names: tuple[str, ...]
    boxes: np.ndarray


class TableLayouts:
    """Layouts drawn from counts of KITTI's labels, which Limbeck ships.

    How many objects of each type stand together is drawn from the 7,481 frames' combinations; the place (range and
    azimuth), yaw and size of each object from those of its type, each by itself. Footprints do not overlap; an object
    that finds no room is left out. [assume: place and yaw are independent, and so are neighbours]

    Attributes:
        content_hash: of the table.
    """

    name = "table"

    def __init__(self) -> None:
        self._table = _table()
        self.content_hash = sha256_json({"layouts": self._table, "gap": GAP})

    def draw(self, rng: np.random.Generator, wanted: str | None = None) -> Layout:
        """A layout; with `wanted`, a class, at least one of it stands within 35 m unless it finds no room."""
        counts, weights = self._counts
        weights = weights * (counts[:, TYPES.index(wanted)] > 0) if wanted else weights
        row = counts[rng.choice(len(counts), p=weights / weights.sum())]
        names = [name for name, times in zip(TYPES, row) for _ in range(times)]
        if wanted:  # it is placed first, when there is room
            names.sort(key=lambda name: name != wanted)
        placed = [EGO]
        found: list[str] = []
        for k, name in enumerate(names):
            box = self._place(rng, name, np.array(placed), near=wanted is not None and k == 0)
            if box is not None:
                placed.append(box)
                found.append(name)
        return Layout(tuple(found), np.array(placed[1:]).reshape(-1, 7))

    @cached_property
    def _counts(self) -> tuple[np.ndarray, np.ndarray]:
        rows = np.array(self._table["counts"])
        return rows[:, 1:], rows[:, 0].astype(np.float64)

    def _place(self, rng: np.random.Generator, name: str, taken: np.ndarray, near: bool) -> np.ndarray | None:
        of_type = self._table["of_types"][name]
        length, width, height = _size(rng, of_type)
        places = np.array(of_type["places"], np.float64)
        if near:
            places = places * (np.array(self._table["range_edges"][1:]) <= 35.0)[:, None]
        ranges, azimuths = self._table["range_edges"], self._table["azimuth_edges"]
        for _ in range(TRIES):
            cell = rng.choice(places.size, p=places.ravel() / places.sum())
            ring, sector = divmod(int(cell), places.shape[1])
            low, high = ranges[ring] ** 2, ranges[ring + 1] ** 2
            reach = np.sqrt(low + rng.random() * (high - low))  # uniform in area
            azimuth = np.radians(_within(rng, azimuths, sector))
            yaws = np.array(of_type["yaws"], np.float64)
            yaw = np.radians(_within(rng, self._table["yaw_edges"], int(rng.choice(len(yaws), p=yaws / yaws.sum()))))
            box = np.array([reach * np.cos(azimuth), reach * np.sin(azimuth), 0.0, length, width, height, yaw])
            if not footprints_overlap(box[None], taken, GAP).any():
                return box
        return None


class KittiLayouts:
    """KITTI's own layouts, as labelled: of the official train ids for train and val, of the val ids for test.

    Every sixth of the train ids is val's. `label_layouts.npz` has `frame`, `type`, `types`, `box_lidar` and
    `difficulty` of every object.

    Args:
        split: 'train', 'val' or 'test'.
        root: folder; None looks in $LIMBECK_DATA/lidar_kitti and in the cache folder.
    Raises: DataMissing, CorruptFile.

    Attributes:
        content_hash: of the file and the ids.
    """

    name = "real"

    def __init__(self, split: str, root: str | None = None) -> None:
        list_name = f"ImageSets_full/{'val' if split == 'test' else 'train'}.txt"
        folder = find_folder("KITTI's layouts", usual_folders("lidar_kitti", root), [_FILE, list_name], ADVICE)
        check_manifest(folder, read_meta(folder))
        found = read_arrays(folder / _FILE, "frame", "type", "types", "box_lidar", "difficulty")
        frames, kinds, types, boxes, levels = found
        unknown = set(map(str, types)) - set(TYPES)
        if unknown:
            raise CorruptFile(f"{folder / _FILE}: types {sorted(unknown)} are none of KITTI's; get the file again")
        self._frames, self._boxes = frames, boxes.astype(np.float64)
        self._names = np.array([str(name) for name in types])[kinds]
        ids = np.array([int(frame) for frame in read_ids(folder / list_name)])
        if split != "test":
            held = np.arange(len(ids)) % HELD_OUT == HELD_OUT - 1
            ids = ids[held] if split == "val" else ids[~held]
        self._ids = ids
        low_x, low_y, high_x, high_y = DESK_RANGE
        x, y = self._boxes[:, :2].T
        self._counted = (levels >= 0) & (levels <= 1) & (x > low_x) & (x < high_x) & (y > low_y) & (y < high_y)
        self.content_hash = sha256_json({"layouts": remembered_sha256(folder / _FILE), "ids": ids.tolist()})

    def draw(self, rng: np.random.Generator, wanted: str | None = None) -> Layout:
        """The layout of a random frame; with `wanted`, of one with that class at moderate within the desk's range."""
        ids = self._pool(wanted) if wanted else self._ids
        rows = np.flatnonzero(self._frames == ids[rng.integers(len(ids))])
        return Layout(tuple(map(str, self._names[rows])), self._boxes[rows])

    @cached_property
    def _pools(self) -> dict[str, np.ndarray]:
        frames = {name: self._frames[self._counted & (self._names == name)] for name in CLASSES}
        return {name: self._ids[np.isin(self._ids, found)] for name, found in frames.items()}

    def _pool(self, wanted: str) -> np.ndarray:
        if wanted not in self._pools:
            raise UnknownName("class", wanted, CLASSES, "of KITTI's layouts")
        return self._pools[wanted]


def footprints_overlap(boxes: np.ndarray, others: np.ndarray, gap: float = 0.0) -> np.ndarray:
    """Which footprints of boxes (M, 7) and (N, 7) come nearer than `gap` metres, by separating axes; bool (M, N).

    The gap counts along the axes of the two, so corners that point at each other may be somewhat nearer.
    """
    apart = others[None, :, :2] - boxes[:, None, :2]
    axes, others_axes = _axes(boxes), _axes(others)
    halves, others_halves = boxes[:, 3:5] / 2, others[:, 3:5] / 2
    between = np.abs(np.einsum("mik,njk->mnij", axes, others_axes))  # cosines of the axes of the two
    own = (
        np.abs(np.einsum("mnk,mik->mni", apart, axes))
        - halves[:, None]
        - np.einsum("mnij,nj->mni", between, others_halves)
    )
    theirs = (
        np.abs(np.einsum("mnk,njk->mnj", apart, others_axes))
        - others_halves
        - np.einsum("mnij,mi->mnj", between, halves)
    )
    return np.maximum(own.max(-1), theirs.max(-1)) < gap


def _axes(boxes: np.ndarray) -> np.ndarray:
    """Unit vectors along length and width, (M, 2, 2)."""
    cos, sin = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
    return np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], 1)


def _size(rng: np.random.Generator, of_type: dict[str, Any]) -> np.ndarray:
    """Length, width and height: log-normal, cut at the least and the most that occurs."""
    spread = np.linalg.cholesky(np.array(of_type["size_covariance"]))
    drawn = np.exp(np.array(of_type["size_mean"]) + spread @ rng.standard_normal(3))
    return np.clip(drawn, of_type["size_low"], of_type["size_high"])


def _within(rng: np.random.Generator, edges: list[float], cell: int) -> float:
    return edges[cell] + rng.random() * (edges[cell + 1] - edges[cell])


@cache
def _table() -> dict[str, Any]:
    return json.loads(files("limbeck.pointcloud.data").joinpath("layouts.json").read_text(encoding="utf-8"))
