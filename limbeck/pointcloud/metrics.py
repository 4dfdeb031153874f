"""Figures of 3D detection: KITTI's average precision of boxes that were found in LiDAR coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from limbeck.engine.registry import METRICS
from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.pointcloud.data.frames import CLASSES, TYPES, Calibration, Frame
from limbeck.pointcloud.kitti_eval import (
    LEVELS,
    Detections,
    FrameTruth,
    Kind,
    KittiResult,
    Level,
    Strictness,
    View,
    evaluate,
)

LIMITS = (
    0.0,
    -40.0,
    -3.0,
    70.4,
    40.0,
    0.0,
)  # mmdet3d's `pcd_limit_range`: lowest, then highest x y z of bottom centres
LEVEL: Level = "moderate"
FIGURES: dict[str, tuple[View, Kind, Strictness]] = {
    "bev_ap40": ("BEV", "AP40", "loose"),
    "bev_ap40_strict": ("BEV", "AP40", "strict"),
    "3d_ap40": ("3D", "AP40", "loose"),
    "3d_ap40_strict": ("3D", "AP40", "strict"),
    "bev_ap_exact": ("BEV", "exact", "loose"),
    "3d_ap_exact": ("3D", "exact", "loose"),
}
_LABELS: dict[str, tuple[int, ...]] = {"gt_types": (), "gt_truncated": (), "gt_occluded": (), "gt_bboxes": (4,)}
_MATRICES = {"P2": (3, 4), "R0": (3, 3), "velo_to_cam": (3, 4), "image_size": (2,)}


class Camera(Protocol):
    """What the conversion needs of a calibration, such as `Calibration`."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        ...

    def to_camera(self, boxes: np.ndarray) -> np.ndarray:
        """LiDAR boxes (M, 7) in the camera's frame: bottom centre, length, height, width, rotation_y."""
        ...

    def project(self, boxes: np.ndarray) -> np.ndarray:
        """Image boxes (M, 4) of LiDAR boxes (M, 7), which may leave the image."""
        ...


def to_kitti(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, camera: Camera, *, classes: Sequence[str] = CLASSES
) -> Detections:
    """KITTI's view of detections; of these only such as the image shows and whose bottom centre is in the usual range.

    As mmdet3d 1.4: x in (0, 70.4), y in (−40, 40), z in (−3, 0) metres; image boxes are cut at the borders afterwards.
    Of a box that is partly behind the camera, mmdet3d projects the mirror image; what `project` says is taken here.

    Args:
        boxes: (N, 7) in LiDAR coordinates. scores: (N,). labels: (N,), indices of `classes`.
    """
    places = np.asarray(boxes, dtype=np.float64)
    image = np.asarray(camera.project(places), dtype=np.float64)
    size = np.asarray(camera.image_size, dtype=np.float64)
    kept = (image[:, :2] < size).all(1) & (image[:, 2:] > 0).all(1)
    kept &= (places[:, :3] > LIMITS[:3]).all(1) & (places[:, :3] < LIMITS[3:]).all(1)
    cut = np.concatenate((np.maximum(image[kept, :2], 0.0), np.minimum(image[kept, 2:], size)), 1)
    names = [classes[int(label)] for label in labels[kept]]
    return Detections(names, np.asarray(scores, dtype=np.float64)[kept], cut, camera.to_camera(places[kept]))


def truth_tensors(frames: Sequence[Frame]) -> dict[str, Tensor]:
    """What `KittiMetric` reads of labelled frames, padded; to be handed on with the predictions.

    Returns: `gt_boxes` (B, M, 7) in LiDAR coordinates, `gt_types` (B, M), indices of `TYPES` with −1 for padding,
        `gt_truncated` and `gt_occluded` (B, M), `gt_bboxes` (B, M, 4), `dont_care` (B, D, 4) with zeros for padding;
        `P2` (B, 3, 4), `R0` (B, 3, 3), `velo_to_cam` (B, 3, 4), `image_size` (B, 2).
    Raises: ConfigError for a frame without a camera, which has no levels of difficulty.
    """
    cameras = []
    for frame in frames:
        if frame.calibration is None or not np.isfinite(frame.bboxes).all():
            raise ConfigError(
                f"frame {frame.id} has no camera; KITTI's metric needs image boxes for its levels of difficulty"
            )
        cameras.append(frame.calibration)
    types = [[TYPES.index(name) if name in TYPES else TYPES.index("Misc") for name in f.names] for f in frames]
    found = {"gt_types": _padded([torch.tensor(row, dtype=torch.int64) for row in types], -1)}
    for name in ("boxes", "truncated", "occluded", "bboxes"):
        found[f"gt_{name}"] = _padded([torch.as_tensor(getattr(frame, name)) for frame in frames])
    found["dont_care"] = _padded([torch.as_tensor(frame.dont_care) for frame in frames])
    for name in _MATRICES:
        found[name] = torch.as_tensor(np.stack([np.asarray(getattr(camera, name)) for camera in cameras]))
    return found


def _padded(rows: list[Tensor], value: float = 0.0) -> Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=value)


@METRICS.register_module()
class KittiMetric:
    """Keeps the boxes of a split and gives KITTI's AP at the moderate level; a sample that comes twice counts once.

    A prediction is one dict a batch, of tensors on the CPU: `boxes` (B, P, 7) in LiDAR coordinates, `scores` (B, P),
    `pred` (B, P), class or −1 for padding, `ids` (B,), and the ground truth as `truth_tensors` gives it. Classes are
    Pedestrian, Cyclist and Car. The first figure is BEV AP40 at the loose overlaps, which cells of half a metre allow,
    and not at the strict ones of the papers [assumption].
    There is no agreement with a teacher: it would hang on a threshold of scores that no paper fixes.
    """

    reads_teacher: ClassVar[bool] = False

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget what was added."""
        self._truth: dict[int, FrameTruth] = {}
        self._found: dict[int, Detections] = {}
        self._result: KittiResult | None = None

    def update(self, predictions: Sequence[dict[str, Any]], teacher: Sequence[dict[str, Any]] | None = None) -> None:
        """Add batches; the teacher's are not looked at.

        Raises: ShapeMismatch, also for labels that are no class; ConfigError without ground truth, or where a box or
            score is not finite.
        """
        self._result = None
        for batch in predictions:
            check_prediction(batch)
            for row, sample in enumerate(batch["ids"].tolist()):
                if sample not in self._truth:
                    camera = _camera(batch, row)
                    self._truth[sample] = _truth(batch, row, camera)
                    self._found[sample] = _found(batch, row, camera)

    def values(self) -> dict[str, float]:
        """In percent, means over the classes that have a counted box: `bev_ap40` and `3d_ap40` at the loose overlaps
        (0.5 for cars, 0.25 otherwise), with `_strict` at 0.7 and 0.5; `bev_ap_exact` and `3d_ap_exact`, loose, which do
        not depend on the number of boxes; `ap40_ceiling`, what perfect boxes would get as AP40.

        Raises: ConfigError when there was nothing, or no box that counts.
        """
        result = self.result()
        known = result.boxes[:, LEVELS.index(LEVEL)] > 0
        found = {
            name: result.overall(view, LEVEL, kind=kind, strictness=strictness)
            for name, (view, kind, strictness) in FIGURES.items()
        }
        return found | {"ap40_ceiling": float(result.ceilings()[known, LEVELS.index(LEVEL)].mean())}

    def per_class(self) -> dict[str, list[float]]:
        """The same of each class in the order of labels, 0 for one without a counted box; `boxes`, how many count."""
        result = self.result()
        found = {
            name: np.nan_to_num(result.ap(view, LEVEL, kind=kind, strictness=strictness))
            for name, (view, kind, strictness) in FIGURES.items()
        }
        found |= {"ap40_ceiling": result.ceilings()[:, LEVELS.index(LEVEL)]}
        found |= {"boxes": result.boxes[:, LEVELS.index(LEVEL)]}
        return {name: [float(value) for value in row] for name, row in found.items()}

    def result(self) -> KittiResult:
        """All levels, strict and loose, BEV and 3D; its `log` has mmdet3d's names.

        Raises: ConfigError when there was nothing, or no box that counts.
        """
        if not self._truth:
            raise ConfigError("the metric got no predictions; the split is empty or its loader gave no batch")
        if self._result is None:
            ids = sorted(self._truth)
            result = evaluate([self._truth[n] for n in ids], [self._found[n] for n in ids], classes=CLASSES)
            if not result.boxes[:, LEVELS.index(LEVEL)].any():
                raise ConfigError(
                    f"no frame of the split has a {', '.join(CLASSES[:-1])} or {CLASSES[-1]} that counts at KITTI's "
                    f"{LEVEL} level; average precision is not defined without any"
                )
            self._result = result
        return self._result


def check_prediction(batch: dict[str, Any]) -> None:
    """Raises: ShapeMismatch unless boxes, scores, classes and labels fit; ConfigError without labels, or where a box or
    score is not finite."""
    missing = [name for name in ("gt_boxes", *_LABELS, *_MATRICES) if name not in batch]
    if missing:
        raise ConfigError(f"predictions have no {missing[0]}; the metric needs a split with labels and calibrations")
    count = len(batch["ids"])
    for boxes, others in (("boxes", {"pred": (), "scores": ()}), ("gt_boxes", _LABELS)):
        shape = tuple(batch[boxes].shape)
        if len(shape) != 3 or shape[0] != count or shape[2] != 7:
            raise ShapeMismatch(f"{boxes} {shape} are not (B, N, 7) of the {count} samples")
        for name, more in others.items():
            if tuple(batch[name].shape) != (*shape[:2], *more):
                raise ShapeMismatch(f"{name} {tuple(batch[name].shape)} do not fit {boxes} {shape}; one a box would")
    for name, shape in _MATRICES.items():
        if tuple(batch[name].shape) != (count, *shape):
            raise ShapeMismatch(f"{name} {tuple(batch[name].shape)} is not {(count, *shape)}, one of each sample")
    real = batch["pred"] >= 0
    if bool((batch["pred"] >= len(CLASSES)).any()):
        raise ShapeMismatch(
            f"class {int(batch['pred'].max())} is not in 0 to {len(CLASSES) - 1}; build the model for the data"
        )
    wrong = ~(batch["boxes"].isfinite().all(2) & batch["scores"].isfinite()) & real
    if bool(wrong.any()):
        sample = int(batch["ids"][wrong.any(1)][0])
        raise ConfigError(f"a predicted box or score of sample {sample} is not finite; the model's weights may be")


def _camera(batch: dict[str, Any], row: int) -> Calibration:
    matrices = {name: batch[name][row].double().numpy() for name in _MATRICES if name != "image_size"}
    width, height = batch["image_size"][row].tolist()
    return Calibration(**matrices, image_size=(int(width), int(height)))


def _truth(batch: dict[str, Any], row: int, camera: Camera) -> FrameTruth:
    real = batch["gt_types"][row] >= 0
    boxes, truncated, occluded, bboxes = (
        batch[f"gt_{name}"][row][real].double().numpy() for name in ("boxes", "truncated", "occluded", "bboxes")
    )
    names = [TYPES[kind] for kind in batch["gt_types"][row][real].tolist()]
    regions = batch["dont_care"][row].double().numpy() if "dont_care" in batch else np.zeros((0, 4))
    return FrameTruth(names, truncated, occluded, bboxes, camera.to_camera(boxes), regions)


def _found(batch: dict[str, Any], row: int, camera: Camera) -> Detections:
    real = batch["pred"][row] >= 0
    boxes, scores = (batch[name][row][real].double().numpy() for name in ("boxes", "scores"))
    return to_kitti(boxes, scores, batch["pred"][row][real].numpy(), camera)
