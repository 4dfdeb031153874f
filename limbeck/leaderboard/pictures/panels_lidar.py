"""The picture of examples of 3D detection: frames from above with boxes, and which objects were found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from limbeck.engine.config import PLAIN
from limbeck.leaderboard.pictures.examples import BEST, LIDAR_IOU, SCORE, WHY
from limbeck.leaderboard.pictures.panel_layout import Cell, Colour, Legend, Line, lay_out
from limbeck.leaderboard.pictures.panels_detection import FOUND, MISSED, Detections, counts_of, keys_of, states

if TYPE_CHECKING:
    from limbeck.leaderboard.pictures.example_images import Shown

SIDE = 384  # pixels of a frame's longer side
UNCOUNTED = 3  # KITTI's occlusion "unknown", and objects out of range: found or not, they do not count


def draw_lidar(
    shown: Sequence[Shown], heading: str, titles: Mapping[str, str], dataset: Any, legend: Legend
) -> Image.Image:
    """True boxes, each member's boxes with scores and its AP from above, and which objects plain and best found.

    Args:
        shown: of `PointCloudAdapter`: `data` has inputs [(P, 4)]; a prediction is what its `predict` gives.
        dataset: has `classes`, `palette` and `point_cloud_range`.
    """
    lines, seen, kinds = [], set(), set()
    for one in shown:
        points = one.data["inputs"][0].numpy()
        truth = _truth(one.predictions[PLAIN][0], dataset.classes)
        boxes = {member: _drawn(found[0]) for member, found in one.predictions.items()}
        found = states(found_objects(truth, boxes[BEST]), found_objects(truth, boxes[PLAIN]))
        seen |= {int(label) for part in (truth, *boxes.values()) for label in part.labels}
        kinds |= set(found.tolist())
        cells = [Cell(_frame(points, truth, dataset), f"{len(truth.labels)} objects")]
        cells += [Cell(_frame(points, part, dataset), _figures(one.metrics[member])) for member, part in boxes.items()]
        cells.append(Cell(_objects(points, truth.boxes, found, dataset), counts_of(found)))
        lines.append(Line(f"test sample {one.sample}: {WHY[one.chosen]}", cells))
    columns = ["truth", *titles.values(), "found by which student"]
    return lay_out(heading, columns, lines, keys_of(dataset, seen, kinds), legend)


def found_objects(truth: Detections, found: Detections) -> np.ndarray:
    """Whether each true object has a box of its class, of score 0.3 or more, that overlaps it enough from above.

    A box may count for several objects, unlike in the AP. Returns: bool (N,).
    """
    from limbeck.pointcloud.boxes import bev_iou

    counted = (np.inf if found.scores is None else found.scores) >= SCORE
    right = (truth.labels[:, None] == found.labels[None]) & counted
    least = np.array(LIDAR_IOU)[truth.labels.astype(int)]
    return (right & (bev_iou(truth.boxes, found.boxes) >= least[:, None])).any(1)


def _truth(batch: Mapping[str, Any], classes: Sequence[str]) -> Detections:
    """Objects of the classes that may count: not padding, not of unknown occlusion, not out of range."""
    from limbeck.pointcloud.data.frames import TYPES

    kinds = [TYPES[kind] if kind >= 0 else "" for kind in batch["gt_types"][0].tolist()]
    labels = np.array([classes.index(kind) if kind in classes else -1 for kind in kinds], int)
    kept = (labels >= 0) & (batch["gt_occluded"][0].numpy() != UNCOUNTED)
    return Detections(batch["gt_boxes"][0].double().numpy()[kept], labels[kept])


def _drawn(batch: Mapping[str, Any]) -> Detections:
    """Boxes of a score that is drawn."""
    kept = (batch["pred"][0] >= 0) & (batch["scores"][0] >= SCORE)
    boxes, scores = (batch[key][0][kept].double().numpy() for key in ("boxes", "scores"))
    return Detections(boxes, batch["pred"][0][kept].numpy(), scores)


def _view(points: np.ndarray, dataset: Any) -> Any:
    from limbeck.pointcloud.bev import BirdsEye

    view = BirdsEye(dataset.point_cloud_range, longest=SIDE)
    view.rings()
    view.points(points)
    return view


def _frame(points: np.ndarray, found: Detections, dataset: Any) -> Image.Image:
    view = _view(points, dataset)
    texts = [] if found.scores is None else [f"{score:.2f}" for score in found.scores]
    view.boxes(found.boxes, [tuple(dataset.palette[int(label)]) for label in found.labels], texts)
    return view.image()


def _objects(points: np.ndarray, boxes: np.ndarray, kinds: np.ndarray, dataset: Any) -> Image.Image:
    """Every true object's outline; those that differ on top."""
    view = _view(points, dataset)
    for kind in reversed(range(len(FOUND))):
        chosen = boxes[kinds == kind]
        colours: list[Colour] = [FOUND[kind]] * len(chosen)
        view.boxes(chosen, colours, dashed=kind == MISSED)
    return view.image()


def _figures(metrics: Mapping[str, float]) -> str:
    return f"BEV AP40 {metrics['bev_ap40']:.1f}, 3D {metrics['3d_ap40']:.1f}" if metrics else "no object that counts"
