"""A small folder in KITTI's layout, of simulated clouds whose objects are near."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from limbeck.pointcloud.data.frames import Frame, default_calibration
from limbeck.pointcloud.data.layouts import Layout
from limbeck.pointcloud.data.simulator import simulate

CAMERA = default_calibration()
BOXES = np.array(
    [[13, 3, 0, 3.9, 1.6, 1.56, 0.2], [8, -2, 0, 0.8, 0.6, 1.73, 1], [11, -3, 0, 1.76, 0.6, 1.73, 0.4]], np.float32
)
NAMES = ("Car", "Pedestrian", "Cyclist")


def write_kitti(root: Path, train: int, val: int, size: int = 10) -> Path:
    """Frames of the official train, the second of which has no object, and val.

    Args:
        size: in metres, along x and y, of the part of every scene that is kept, from 5 m ahead on; 0 keeps all of it.
    """
    for part in ("velodyne_reduced", "calib", "label_2"):
        (root / "training" / part).mkdir(parents=True)
    (root / "ImageSets").mkdir()
    for split, ids in (("train", range(train)), ("val", range(train, train + val))):
        (root / f"ImageSets/{split}.txt").write_text("".join(f"{n:06d}\n" for n in ids))
    rows = {"P2": CAMERA.P2, "R0_rect": CAMERA.R0, "Tr_velo_to_cam": CAMERA.velo_to_cam}
    calibration = "".join(f"{key}: {' '.join(map(str, value.ravel()))}\n" for key, value in rows.items())
    for n in range(train + val):
        shift = np.array([n % 3, n % 2, 0, 0, 0, 0, 0.1 * n], np.float32)
        frame = simulate(n, layout=Layout(NAMES, BOXES + shift))
        near = (np.abs(frame.points[:, :2] - [5 + size / 2, 0]) < size / 2).all(1) if size else slice(None)
        frame.points[near].astype("<f4").tofile(root / f"training/velodyne_reduced/{n:06d}.bin")
        (root / f"training/calib/{n:06d}.txt").write_text(calibration)
        (root / f"training/label_2/{n:06d}.txt").write_text("" if n == 1 else labels(frame))
    return root


def labels(frame: Frame) -> str:
    """KITTI's lines of a frame."""
    lines = []
    for row, (x, y, z, length, height, width, turn) in enumerate(CAMERA.to_camera(frame.boxes)):
        facts = [frame.names[row], float(frame.truncated[row]), int(frame.occluded[row]), 0, *frame.bboxes[row]]
        lines.append(" ".join(map(str, [*facts, height, width, length, x, y, z, turn])))
    return "".join(f"{line}\n" for line in lines)
