"""Count how KITTI's 7,481 labelled frames are laid out, for the simulator: numbers alone, no label of any frame.

Usage: python -m benchmarks.layout_table DATA/lidar_kitti --out limbeck/pointcloud/data/layouts.json
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from limbeck.engine.data_files import read_arrays
from limbeck.pointcloud.data.frames import TYPES, wrapped

RANGES = (2.0, 4, 6, 8, 10, 12.5, 15, 17.5, 20, 25, 30, 35, 40, 50, 60, 70)  # metres
AZIMUTHS = tuple(range(-45, 46, 5))  # degrees
YAWS = tuple(range(-180, 181, 10))  # degrees
MOST = 30  # of a type in a frame


def table(folder: Path) -> dict[str, Any]:
    """Counts of `label_layouts.npz`: objects a frame, places, yaws and sizes of each type."""
    path = folder / "label_layouts.npz"
    boxes, kinds, types, frames = read_arrays(path, "box_lidar", "type", "types", "frame")
    reach = np.hypot(boxes[:, 0], boxes[:, 1])
    azimuth = np.degrees(np.arctan2(boxes[:, 1], boxes[:, 0]))
    inside = (reach >= RANGES[0]) & (reach < RANGES[-1]) & (np.abs(azimuth) < AZIMUTHS[-1])
    order = [list(types).index(name) for name in TYPES]
    number = int(frames.max()) + 1
    counts = np.zeros((number, len(types)), np.int64)
    np.add.at(counts, (frames[inside], kinds[inside]), 1)
    seen = Counter(map(tuple, np.minimum(counts[:, order], MOST).tolist()))
    of_types = {}
    for name, kind in zip(TYPES, order):
        chosen = inside & (kinds == kind)
        places, _, _ = np.histogram2d(reach[chosen], azimuth[chosen], (RANGES, AZIMUTHS))
        yaws, _ = np.histogram(np.degrees(wrapped(boxes[chosen, 6])), YAWS)
        sizes = np.log(boxes[chosen, 3:6].astype(np.float64))
        of_types[name] = {
            "places": places.astype(int).tolist(),
            "yaws": yaws.tolist(),
            "size_mean": sizes.mean(0).round(4).tolist(),
            "size_covariance": np.cov(sizes.T).round(6).tolist(),
            "size_low": boxes[chosen, 3:6].min(0).astype(float).round(2).tolist(),
            "size_high": boxes[chosen, 3:6].max(0).astype(float).round(2).tolist(),
        }
    return {
        "source": "counted in KITTI's 7,481 training labels (Geiger et al. 2012) by benchmarks/layout_table.py",
        "frames": number,
        "types": list(TYPES),
        "range_edges": RANGES,
        "azimuth_edges": AZIMUTHS,
        "yaw_edges": YAWS,
        "counts": sorted(([times, *row] for row, times in seen.items()), reverse=True),
        "of_types": of_types,
    }


def main(
    folder: Annotated[Path, typer.Argument(help="Folder with label_layouts.npz.")],
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
) -> None:
    """Write the table."""
    found = table(folder)
    lines = [f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in found.items()]
    out.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
