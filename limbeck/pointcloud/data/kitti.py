"""KITTI's 3D object benchmark (Geiger et al. 2012): frames of a folder in its layout, every file checked."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from limbeck.engine.data_files import BROKEN_IMAGE, damaged
from limbeck.errors import DataMissing, UnknownName
from limbeck.pointcloud.data.frames import TYPES, Calibration, Frame, boxes_fault, points_fault

LAYOUT = (
    "training/{velodyne,label_2,calib,image_2} as KITTI's four archives (velodyne points, labels, camera calibration, "
    "left colour images) unpack, and ImageSets/{train,val}.txt with a frame's number a line"
)
NOMINAL_SIZE = (1242, 375)
_COLUMNS = 15  # of a label line: type, truncated, occluded, alpha, 4 of the image box, h w l, x y z, rotation_y
_TESTING = ("test", "unlabelled")  # splits whose frames are in testing/
_POINT_BYTES = 16


class KittiFolder:
    """The frames of a folder in KITTI's layout.

    Points are of `velodyne_reduced`, which holds what the image shows, or of `velodyne`, cut to the image. The image's
    size is read from image_2, else from the folder's frames.json (`id`, `image_wh`), else taken as 1242 × 375. Frames
    of the splits 'test' and 'unlabelled' are in testing/, have no labels and get no boxes.

    Args:
        root: has training/, ImageSets/ and, for those splits, testing/.
    Raises: DataMissing when there is no such folder.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not (self.root / "ImageSets").is_dir():
            raise DataMissing(f"{self.root} has no folder ImageSets; it needs {LAYOUT}")

    def ids(self, split: str) -> list[str]:
        """Ids of a split in the order of ImageSets/<split>.txt.

        Raises: UnknownName; CorruptFile for a line that is no frame number, an id that comes twice, or no id at all.
        """
        known = [path.stem for path in (self.root / "ImageSets").glob("*.txt")]
        if split not in known:
            raise UnknownName("split", split, known, f"of {self.root}")
        return read_ids(self.root / "ImageSets" / f"{split}.txt")

    def frame(self, frame: str, split: str = "train") -> Frame:
        """The frame of this id. Raises: DataMissing for an absent file, CorruptFile for a bad one."""
        folder = self.root / ("testing" if split in _TESTING else "training")
        points = self._points_file(folder, frame)
        calibration = self._calibration(folder, frame)
        cloud = read_points(points)
        if points.parent.name == "velodyne":
            cloud = cloud[calibration.in_image(cloud)]
            if not len(cloud):
                raise damaged(points, "none of its points is in the image; does calib belong to this frame?")
        label = folder / "label_2" / f"{frame}.txt"
        if split in _TESTING:
            objects: dict[str, Any] = parse_labels([], label, calibration)
        else:
            objects = parse_labels(_lines(label), label, calibration)
        return Frame(id=frame, points=cloud, calibration=calibration, **objects)

    def _points_file(self, folder: Path, frame: str) -> Path:
        tried = [folder / name / f"{frame}.bin" for name in ("velodyne_reduced", "velodyne")]
        for path in tried:
            if path.is_file():
                return path
        raise DataMissing(
            f"frame {frame} has neither {tried[0]} nor {tried[1]}; complete the folder: it needs {LAYOUT}"
        )

    def _calibration(self, folder: Path, frame: str) -> Calibration:
        return read_calibration(folder / "calib" / f"{frame}.txt", self._image_size(folder, frame))

    def _image_size(self, folder: Path, frame: str) -> tuple[int, int]:
        for kind in ("png", "jpg"):
            path = folder / "image_2" / f"{frame}.{kind}"
            if path.is_file():
                return _picture_size(path)
        return self._listed_sizes.get((folder.name, frame), NOMINAL_SIZE)

    @cached_property
    def _listed_sizes(self) -> dict[tuple[str, str], tuple[int, int]]:
        path = self.root / "frames.json"
        if not path.is_file():
            return {}
        try:
            listed = json.loads(path.read_text(encoding="utf-8"))
            found = {(one.get("folder", "training"), one["id"]): one.get("image_wh") for one in listed}
            return {key: (int(size[0]), int(size[1])) for key, size in found.items() if size}
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise damaged(
                path, f"does not list frames with id and image_wh ({type(error).__name__}: {error})"
            ) from error


def read_ids(path: Path) -> list[str]:
    """Frame ids of a list file, a number a line.

    Raises: DataMissing; CorruptFile for a line that is no number, an id that comes twice, or no id at all.
    """
    found = [line.strip() for line in _lines(path) if line.strip()]
    if not found:
        raise damaged(path, "lists no frames")
    seen: set[str] = set()
    for line in found:
        if not line.isdecimal():
            raise damaged(path, f"{line!r} is no frame number")
        if line in seen:
            raise damaged(path, f"frame {line} comes twice")
        seen.add(line)
    return found


def read_points(path: Path) -> np.ndarray:
    """A cloud of little-endian float32 x, y, z, reflectance; float32 (P, 4).

    Raises: DataMissing; CorruptFile when it is cut off, empty, not finite, or seems to have another number of columns.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataMissing(f"{path} cannot be read: {error.strerror}; complete the folder") from error
    if len(data) % _POINT_BYTES:
        reason = (
            f"has {len(data)} bytes, not a multiple of {_POINT_BYTES} (4 float32 a point): cut off, or other columns"
        )
        raise damaged(path, reason)
    points = np.frombuffer(data, "<f4").reshape(-1, 4).astype(np.float32)
    fault = points_fault(points)
    if fault:
        raise damaged(path, fault)
    return points


def read_calibration(path: Path, image_size: tuple[int, int]) -> Calibration:
    """P2, R0_rect and Tr_velo_to_cam of a frame. Raises: DataMissing; CorruptFile for an absent or malformed line."""
    if not path.is_file():
        raise DataMissing(
            f"frame {path.stem} has no calibration {path}; its boxes cannot be brought into LiDAR's frame"
        )
    rows = {key.strip(): values.split() for key, _, values in (line.partition(":") for line in _lines(path))}
    found: dict[str, np.ndarray] = {}
    for key, shape in (("P2", (3, 4)), ("R0_rect", (3, 3)), ("Tr_velo_to_cam", (3, 4))):
        try:
            found[key] = np.array([float(value) for value in rows[key]]).reshape(shape)
        except (KeyError, ValueError) as error:
            raise damaged(path, f"has no line {key} with {shape[0] * shape[1]} numbers") from error
        if not np.isfinite(found[key]).all():
            raise damaged(path, f"line {key} is not finite")
    transform = found["R0_rect"] @ found["Tr_velo_to_cam"][:, :3]
    if abs(np.linalg.det(transform)) < 0.5:  # 1 for a rotation
        raise damaged(path, "R0_rect and Tr_velo_to_cam are no rotations")
    return Calibration(found["P2"], found["R0_rect"], found["Tr_velo_to_cam"], image_size)


def parse_labels(lines: list[str], path: Path, calibration: Calibration) -> dict[str, Any]:
    """Fields of `Frame` that KITTI's label lines say: boxes in LiDAR coordinates, names, and so on.

    Args:
        path: names the file in errors.
    Raises: CorruptFile naming the line that has another number of columns, an unknown type, no numbers, or a size that
        is not above 0.
    """
    rows = [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]
    values = np.zeros((len(rows), _COLUMNS - 1))
    for row, (number, words) in enumerate(rows):
        values[row] = _numbers(path, number, words)
    names = [words[0] for _, words in rows]
    labelled = np.array([name != "DontCare" for name in names], bool)
    objects = values[labelled]
    height, width, length = objects[:, 7:10].T
    camera = np.stack([*objects[:, 10:13].T, length, height, width, objects[:, 13]], 1)
    boxes = calibration.to_lidar(camera).astype(np.float32)
    fault = boxes_fault(boxes)
    if fault:
        raise damaged(path, f"of its labelled objects {fault}")
    return {
        "boxes": boxes,
        "names": tuple(name for name in names if name != "DontCare"),
        "truncated": objects[:, 0].astype(np.float32),
        "occluded": objects[:, 1].astype(np.int64),
        "bboxes": objects[:, 3:7].astype(np.float32),
        "dont_care": values[~labelled, 3:7].astype(np.float32),
    }


def _numbers(path: Path, number: int, words: list[str]) -> list[float]:
    if len(words) != _COLUMNS:
        raise damaged(path, f"line {number} has {len(words)} columns, not {_COLUMNS}")
    if words[0] not in (*TYPES, "DontCare"):
        raise damaged(path, f"line {number} is of type {words[0]!r}, none of {', '.join(TYPES)}, DontCare")
    try:
        found = [float(word) for word in words[1:]]
    except ValueError as error:
        raise damaged(path, f"line {number}: {error}") from error
    if not np.isfinite(found).all():
        raise damaged(path, f"line {number} has a number that is not finite")
    if words[0] != "DontCare" and min(found[7:10]) <= 0:
        raise damaged(path, f"line {number}: height, width and length {found[7:10]} are not all above 0")
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise DataMissing(f"{path} is missing; complete the folder: it needs {LAYOUT}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise damaged(path, f"cannot be read as text ({error})") from error


def _picture_size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
    except BROKEN_IMAGE as error:
        raise damaged(path, f"is no image ({error})") from error
