"""Where the data sets of point clouds are looked for, and the check of a user's copy of KITTI; none is downloaded."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from limbeck.engine.data_files import damaged, find_folder, usual_folders
from limbeck.engine.data_sources import Source
from limbeck.engine.paths import cache_dir
from limbeck.engine.weights import sha256_json, write_json
from limbeck.errors import DataMissing

_TERMS = "each user has to register with KITTI and agree to its terms"
_SPLITS = ("train", "val")
_POINT_BYTES = 16


def sources() -> dict[str, Source]:
    """Name of a data set → where it comes from."""
    return {
        "lidar-scenes": Source(
            "Simulated LiDAR scenes with boxes of 3 classes, any number, laid out as KITTI's, Apache-2.0 licence",
            place="made when asked for, from a table that Limbeck ships",
        ),
        "kitti": Source(
            "KITTI 3D objects, 7,481 labelled LiDAR frames with boxes of 3 classes, 13 GB of points, CC BY-NC-SA 3.0",
            find_kitti,
            _prepare,
            _TERMS,
        ),
        "kitti-frames": Source(
            "25 labelled frames of KITTI, 8 MB, CC BY-NC-SA 3.0",
            lambda: _find("kitti_frames", ["ImageSets/train.txt", "training/velodyne_reduced"]),
            why="the copy is of several public repositories",
        ),
        "av2-sweeps": Source(
            "3 sweeps of Argoverse 2 with boxes, 2 MB, CC BY-NC-SA 4.0",
            lambda: _find("lidar_av2", ["frames.json"]),
            why="this copy has a layout of its own",
        ),
    }


def find_kitti(root: str | Path | None = None) -> Path:
    """The folder of KITTI's archives. Raises: DataMissing, saying which archives to unpack where."""
    from limbeck.pointcloud.data.kitti import LAYOUT

    wanted = ["training/calib", "training/label_2", *(f"ImageSets/{split}.txt" for split in _SPLITS)]
    advice = (
        "get velodyne, label_2, calib and, for the images' sizes, image_2 of the 3D object benchmark from KITTI's site "
        f"after registration and unpack them into $LIMBECK_DATA/kitti; it has {LAYOUT}"
    )
    return find_folder("kitti", usual_folders("kitti", root), wanted, advice)


def prepare_kitti(root: str | Path | None = None) -> tuple[Path, dict[str, Any]]:
    """Check that every frame of train and val has its files, and write an index of them into the cache folder.

    The index holds counts, and the size in bytes of each frame's points, labels and calibration, which `content_hash`
    is of: gigabytes of points are not read. What the files hold is checked when a frame is read.

    Returns: the folder of the data and the index.
    Raises: DataMissing naming the first absent file and how many there are; CorruptFile for points that are cut off.
    """
    from limbeck.pointcloud.data.kitti import read_ids

    folder = find_kitti(root)
    frames: dict[str, dict[str, list[int]]] = {}
    missing: list[Path] = []
    for split in _SPLITS:
        ids = read_ids(folder / "ImageSets" / f"{split}.txt")
        frames[split] = {frame: _sizes(folder / "training", frame, missing) for frame in ids}
    if missing:
        raise DataMissing(
            f"{len(missing)} files of {folder} are missing, the first is {missing[0]}; unpack KITTI's archives again"
        )
    counts = {split: len(found) for split, found in frames.items()}
    index = {"root": str(folder), "counts": counts, "content_hash": sha256_json(frames), "frames": frames}
    write_json(index_path(), index)
    return folder, index


def index_path() -> Path:
    """Where `prepare_kitti` writes its index."""
    return cache_dir() / "indexes" / "kitti.json"


def _sizes(training: Path, frame: str, missing: list[Path]) -> list[int]:
    """Sizes of points, labels and calibration; absent files are added to `missing`."""
    names = ("velodyne_reduced", "velodyne")
    points = next((path for name in names if (path := training / name / f"{frame}.bin").is_file()), None)
    paths = [points or training / "velodyne" / f"{frame}.bin"]
    paths += [training / name / f"{frame}.txt" for name in ("label_2", "calib")]
    absent = [path for path in paths if not path.is_file()]
    if absent:
        missing += absent
        return []
    sizes = [path.stat().st_size for path in paths]
    if sizes[0] == 0 or sizes[0] % _POINT_BYTES:
        raise damaged(paths[0], f"has {sizes[0]} bytes, not a multiple of {_POINT_BYTES} above 0")
    return sizes


def _prepare(progress: bool) -> Path:
    try:
        folder, index = prepare_kitti()
    except DataMissing as error:
        raise DataMissing(f"{error}; it cannot be downloaded: {_TERMS}") from error
    if progress:
        counts = ", ".join(f"{count} {split}" for split, count in index["counts"].items())
        print(f"kitti: {counts} frames are complete; index in {index_path()}", file=sys.stderr)
    return folder


def _find(name: str, parts: Sequence[str]) -> Path:
    return find_folder(name, usual_folders(name, None), parts, f"put it into $LIMBECK_DATA/{name}")
