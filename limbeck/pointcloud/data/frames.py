"""A LiDAR frame: points, oriented boxes, and the camera that KITTI's labels refer to."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

CLASSES = ("Pedestrian", "Cyclist", "Car")  # in the order of labels
PALETTE = (
    (213, 94, 0),
    (0, 158, 115),
    (0, 114, 178),
)  # of the classes in pictures, told apart by colour-blind eyes too
TYPES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc")  # of KITTI's labels
LEVELS = ("easy", "moderate", "hard")
LEAST_HEIGHT = (40.0, 25.0, 25.0)  # of the image box in pixels, strictly, by level
MOST_OCCLUDED = (0, 1, 2)
MOST_TRUNCATED = (0.15, 0.30, 0.50)
_NEAR = 0.1  # metres before the camera at which boxes are cut for projection
# Corners of a box, as multiples of its half length and half width and of its height above the bottom.
_UNIT = np.array([(x, y, z) for z in (0.0, 1.0) for x, y in ((1, 1), (1, -1), (-1, -1), (-1, 1))])
_EDGES = np.array([(k, (k + 1) % 4) for k in range(4)] + [(k + 4, (k + 1) % 4 + 4) for k in range(4)])
_EDGES = np.concatenate([_EDGES, [(k, k + 4) for k in range(4)]])


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """KITTI's left colour camera, and where it stands to the LiDAR.

    Args:
        P2: projection (3, 4) of rectified camera coordinates (x right, y down, z forward, metres) to pixels.
        R0: rectifying rotation (3, 3).
        velo_to_cam: (3, 4), LiDAR coordinates to those of the camera before rectification.
        image_size: width and height in pixels.
    """

    P2: np.ndarray
    R0: np.ndarray
    velo_to_cam: np.ndarray
    image_size: tuple[int, int]

    def camera_points(self, points: np.ndarray) -> np.ndarray:
        """LiDAR coordinates (…, 3) in rectified camera coordinates, float64 (…, 3)."""
        turn, shift = self._rigid()
        return np.asarray(points, np.float64) @ turn.T + shift

    def pixels(self, camera: np.ndarray) -> np.ndarray:
        """Rectified camera coordinates (…, 3) to column and row, float64 (…, 2); depths have to be above 0."""
        found = np.asarray(camera, np.float64) @ self.P2[:, :3].T + self.P2[:, 3]
        return found[..., :2] / found[..., 2:]

    def in_image(self, points: np.ndarray) -> np.ndarray:
        """Which points (P, ≥ 3) in LiDAR coordinates the image shows, bool (P,)."""
        camera = self.camera_points(points[:, :3])
        ahead = np.asarray(camera[:, 2] > 0)
        column, row = self.pixels(np.where(ahead[:, None], camera, 1.0)).T
        width, height = self.image_size
        return ahead & (column >= 0) & (column < width) & (row >= 0) & (row < height)

    def to_camera(self, boxes: np.ndarray) -> np.ndarray:
        """LiDAR boxes (M, 7) as KITTI's: x, y, z of the bottom centre, l, h, w, rotation_y; float64 (M, 7).

        As KITTI's devkit and mmdet3d do, rotation_y = −yaw − π/2: the small tilt between the frames is left out.
        """
        boxes = np.asarray(boxes, np.float64).reshape(-1, 7)
        length, width, height, yaw = boxes[:, 3:].T
        rest = np.stack([length, height, width, wrapped(-yaw - np.pi / 2)], 1)
        return np.concatenate([self.camera_points(boxes[:, :3]), rest], 1)

    def to_lidar(self, camera_boxes: np.ndarray) -> np.ndarray:
        """The reverse of `to_camera`: float64 (M, 7)."""
        boxes = np.asarray(camera_boxes, np.float64).reshape(-1, 7)
        turn, shift = self._rigid()
        length, height, width, rotation = boxes[:, 3:].T
        rest = np.stack([length, width, height, wrapped(-rotation - np.pi / 2)], 1)
        return np.concatenate([np.linalg.solve(turn, (boxes[:, :3] - shift).T).T, rest], 1)

    def project(self, boxes: np.ndarray) -> np.ndarray:
        """Image boxes of LiDAR boxes (M, 7): x1, y1, x2, y2 of the visible part's corners in pixels, float64 (M, 4).

        They are not cut at the image's borders. Boxes are cut 0.1 m before the camera; those wholly behind it give
        (−1, −1, −1, −1), which lies outside every image.
        """
        x, y, z, length, height, width, rotation = self.to_camera(boxes).T[:, :, None]
        along, across, up = _UNIT[:, 0] * length / 2, _UNIT[:, 1] * width / 2, _UNIT[:, 2] * height
        cos, sin = np.cos(rotation), np.sin(rotation)
        corners = np.stack([x + cos * along + sin * across, y - up, z - sin * along + cos * across], -1)
        start, end = corners[:, _EDGES[:, 0]], corners[:, _EDGES[:, 1]]
        crossing = (start[..., 2] < _NEAR) != (end[..., 2] < _NEAR)
        run = np.where(crossing, end[..., 2] - start[..., 2], 1.0)
        cut = start + ((_NEAR - start[..., 2]) / run)[..., None] * (end - start)
        shown = np.concatenate([corners[..., 2] >= _NEAR, crossing], 1)
        candidates = np.where(shown[..., None], np.concatenate([corners, cut], 1), 1.0)
        pixels = self.pixels(candidates)
        low = np.where(shown[..., None], pixels, np.inf).min(1)
        high = np.where(shown[..., None], pixels, -np.inf).max(1)
        return np.where(shown.any(1, keepdims=True), np.concatenate([low, high], 1), -1.0)

    def clipped(self, bboxes: np.ndarray) -> np.ndarray:
        """Image boxes (M, 4) cut at the borders of the image."""
        width, height = self.image_size
        return np.clip(bboxes, 0, (width, height, width, height))

    def _rigid(self) -> tuple[np.ndarray, np.ndarray]:
        transform = np.asarray(self.R0, np.float64) @ np.asarray(self.velo_to_cam, np.float64)
        return transform[:, :3], transform[:, 3]


def default_calibration() -> Calibration:
    """A camera as KITTI's, level and without lens errors, for simulated scenes: 1242 × 375 pixels, 0.27 m ahead.

    Focal length and principal point are those of KITTI's most frequent calibration, rounded.
    """
    focal, centre = 721.5, (609.6, 172.9)
    projection = np.array([[focal, 0, centre[0], 44.9], [0, focal, centre[1], 0.2], [0, 0, 1, 0.003]])
    turn = np.array([[0.0, -1, 0, 0.0], [0, 0, -1, -0.08], [1, 0, 0, -0.27]])
    return Calibration(projection, np.eye(3), turn, (1242, 375))


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A cloud and its M objects.

    Args:
        id: names the frame in its data set.
        points: float32 (P, 4): x forward, y left, z up in metres, reflectance in [0, 1].
        boxes: float32 (M, 7): x, y, z of the bottom centre, length, width, height, yaw (about z, counter-clockwise,
            0 = x forward), as mmdet3d's `LiDARInstance3DBoxes`.
        names: KITTI's type of each object; those that are no class of ours, such as Van, stay. DontCare is left out.
        truncated: float32 (M,), share of the object outside the image.
        occluded: int64 (M,): 0 visible, 1 partly and 2 largely occluded, 3 not known.
        bboxes: float32 (M, 4), image boxes x1, y1, x2, y2 in pixels; NaN where there is no camera.
        dont_care: float32 (D, 4), image boxes of unlabelled regions.
        calibration: of the camera; None where there is none.
    """

    id: str
    points: np.ndarray
    boxes: np.ndarray
    names: tuple[str, ...]
    truncated: np.ndarray
    occluded: np.ndarray
    bboxes: np.ndarray
    dont_care: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    calibration: Calibration | None = None

    @property
    def labels(self) -> np.ndarray:
        """Index of each object's name in `CLASSES`, −1 for other types; int64 (M,)."""
        return np.array([CLASSES.index(name) if name in CLASSES else -1 for name in self.names], np.int64)

    def difficulties(self) -> np.ndarray:
        """KITTI's level of each object, the easiest that it belongs to: 0 easy, 1 moderate, 2 hard, −1 none; (M,)."""
        heights = self.bboxes[:, 3] - self.bboxes[:, 1]
        found = np.full(len(self.names), -1, np.int64)
        for level in reversed(range(len(LEVELS))):
            fits = (heights > LEAST_HEIGHT[level]) & (self.occluded <= MOST_OCCLUDED[level])
            found[fits & (self.truncated <= MOST_TRUNCATED[level])] = level
        return found

    def select(self, objects: np.ndarray) -> Frame:
        """The same cloud with these objects alone; bool (M,) or indices."""
        chosen = np.arange(len(self.names))[objects]
        return replace(
            self,
            boxes=self.boxes[chosen],
            names=tuple(self.names[k] for k in chosen),
            truncated=self.truncated[chosen],
            occluded=self.occluded[chosen],
            bboxes=self.bboxes[chosen],
        )


def wrapped(angle: np.ndarray) -> np.ndarray:
    """Angles brought into [−π, π)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def points_in_boxes(points: np.ndarray, boxes: np.ndarray, margin: float = 0.0) -> np.ndarray:
    """Which points (P, ≥ 3) lie in which boxes (M, 7) that are larger by `margin` metres a side; bool (M, P)."""
    points, boxes = np.asarray(points, np.float64), np.asarray(boxes, np.float64).reshape(-1, 7)
    x, y = (points[None, :, axis] - boxes[:, axis, None] for axis in (0, 1))
    cos, sin = np.cos(boxes[:, 6, None]), np.sin(boxes[:, 6, None])
    length, width, height = (boxes[:, axis, None] for axis in (3, 4, 5))
    up = points[None, :, 2] - boxes[:, 2, None]
    inside = (np.abs(x * cos + y * sin) <= length / 2 + margin) & (np.abs(y * cos - x * sin) <= width / 2 + margin)
    return inside & (up >= -margin) & (up <= height + margin)


def points_fault(points: np.ndarray) -> str | None:
    """What is wrong with a cloud, or None: it has to be (P, 4) with P > 0, finite, reflectance in [0, 1]."""
    if points.ndim != 2 or points.shape[1] != 4:
        return f"points have shape {points.shape}, not (P, 4): x, y, z, reflectance"
    if not len(points):
        return "the cloud has no points"
    wrong = np.flatnonzero(~np.isfinite(points).all(1))
    if len(wrong):
        return f"point {wrong[0]} is {points[wrong[0]].tolist()}, and {len(wrong)} of {len(points)} are not finite"
    wrong = np.flatnonzero((points[:, 3] < 0) | (points[:, 3] > 1))
    if len(wrong):
        return f"reflectance {points[wrong[0], 3]:g} of point {wrong[0]} is not in 0 to 1; are there 4 columns a point?"
    return None


def boxes_fault(boxes: np.ndarray) -> str | None:
    """What is wrong with boxes, or None: they have to be (M, 7), finite, with sizes above 0."""
    if boxes.ndim != 2 or boxes.shape[1] != 7:
        return f"boxes have shape {boxes.shape}, not (M, 7): x, y, z, length, width, height, yaw"
    wrong = np.flatnonzero(~np.isfinite(boxes).all(1))
    if len(wrong):
        return f"box {wrong[0]} is {boxes[wrong[0]].tolist()}, which is not finite"
    wrong = np.flatnonzero((boxes[:, 3:6] <= 0).any(1))
    if len(wrong):
        return f"box {wrong[0]} has sizes {boxes[wrong[0], 3:6].tolist()}; they have to be above 0"
    return None
