"""Sweeps of the Argoverse 2 sensor data set (arXiv 2301.00493): another LiDAR and town than KITTI's, all around."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.engine.data_files import damaged, read_arrays
from limbeck.errors import DataMissing, UnknownName
from limbeck.pointcloud.data.frames import Frame, boxes_fault, points_fault

ADVICE = "put <log>_<timestamp>.npz (xyz, intensity) and frames.json (id, objects) into $LIMBECK_DATA/lidar_av2"
LOWER = 1.3  # metres: AV2's origin is the rear axle, KITTI's the LiDAR, so that roads lie near −0.35 and −1.65
GROUPS = {"pedestrian": "Pedestrian", "cyclist": "Cyclist", "other": "Misc"}
# A ridden bicycle or motorcycle and one without a rider are both Cyclist here: the source does not tell them apart.
VEHICLES = {"REGULAR_VEHICLE": "Car"}


class AV2Sweeps:
    """The sweeps of a folder as frames, with AV2's categories as KITTI's types; there is no camera.

    A regular vehicle is a Car and every larger one a Truck; bicycles and motorcycles are Cyclist, ridden or not. Image
    boxes are NaN, so that no object has a level of difficulty; truncation and occlusion are 0.

    Args:
        root: has frames.json and a .npz a sweep.
        lower: metres that are taken off every z, to bring the road to where KITTI has it.
    Raises: DataMissing, CorruptFile.
    """

    def __init__(self, root: str | Path, *, lower: float = LOWER) -> None:
        self.root, self.lower = Path(root), lower
        path = self.root / "frames.json"
        try:
            listed = json.loads(path.read_text(encoding="utf-8"))
            self._objects: dict[str, list[Any]] = {str(one["id"]): list(one["objects"]) for one in listed}
        except FileNotFoundError as error:
            raise DataMissing(f"{path} is missing; {ADVICE}") from error
        except (OSError, ValueError, TypeError, KeyError) as error:
            reason = f"does not list sweeps with id and objects ({type(error).__name__}: {error})"
            raise damaged(path, reason) from error

    @property
    def ids(self) -> list[str]:
        """Ids of the sweeps in the order of frames.json."""
        return list(self._objects)

    def frame(self, sweep: str) -> Frame:
        """The sweep of this id. Raises: UnknownName, DataMissing, CorruptFile."""
        if sweep not in self._objects:
            raise UnknownName("sweep", sweep, self._objects, f"of {self.root}")
        boxes, names = self._labels(sweep)
        count = len(names)
        return Frame(
            id=sweep,
            points=self._points(sweep),
            boxes=boxes,
            names=names,
            truncated=np.zeros(count, np.float32),
            occluded=np.zeros(count, np.int64),
            bboxes=np.full((count, 4), np.nan, np.float32),
        )

    def _points(self, sweep: str) -> np.ndarray:
        path = self.root / f"{sweep}.npz"
        if not path.is_file():
            raise DataMissing(f"{path} is missing, which frames.json names; {ADVICE}")
        xyz, intensity = read_arrays(path, "xyz", "intensity")
        if xyz.ndim != 2 or xyz.shape[1] != 3 or intensity.shape != (len(xyz),):
            raise damaged(path, f"xyz {xyz.shape} and intensity {intensity.shape} are not (P, 3) and (P,)")
        points = np.column_stack([xyz.astype(np.float32), intensity.astype(np.float32) / 255])
        points[:, 2] -= self.lower
        fault = points_fault(points)
        if fault:
            raise damaged(path, fault)
        return points

    def _labels(self, sweep: str) -> tuple[np.ndarray, tuple[str, ...]]:
        path = self.root / "frames.json"
        try:
            rows = [one["box_lidar"] for one in self._objects[sweep]]
            names = tuple(_kitti_type(one["type"], one["group"]) for one in self._objects[sweep])
            boxes = np.array(rows, np.float32).reshape(len(rows), 7)
        except (ValueError, TypeError, KeyError) as error:
            raise damaged(path, f"objects of {sweep} do not read ({type(error).__name__}: {error})") from error
        fault = boxes_fault(boxes)
        if fault:
            raise damaged(path, f"of {sweep}, {fault}")
        boxes[:, 2] -= self.lower
        return boxes, names


def _kitti_type(category: str, group: str) -> str:
    """KITTI's type of an AV2 category. Raises: KeyError for an unknown group."""
    return VEHICLES.get(category, "Truck") if group == "vehicle" else GROUPS[group]
