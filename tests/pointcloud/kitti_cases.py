"""Random labelled frames and detections for KITTI's metric, and its average precision by plain loops over shapely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from shapely import Polygon

from limbeck.pointcloud.kitti_eval import Detections, FrameTruth

TYPES = ("Car", "Pedestrian", "Cyclist", "Van", "Person_sitting", "Truck")
Frames = tuple[list[FrameTruth], list[Detections]]


def truth(
    boxes: Any,
    names: Sequence[str] | str = "Car",
    *,
    height: Any = 60.0,
    occluded: Any = 0,
    truncated: Any = 0.0,
    dont_care: Any = (),
) -> FrameTruth:
    """Labels whose image boxes are `height` pixels high and stand side by side."""
    placed = np.array(boxes, dtype=np.float64).reshape(-1, 7)
    count = len(placed)
    named = [names] * count if isinstance(names, str) else list(names)
    rows = [np.full(count, float(v)) if np.isscalar(v) else np.array(v, float) for v in (truncated, occluded, height)]
    return FrameTruth(
        named, rows[0], rows[1], image_boxes(placed, rows[2]), placed, np.array(dont_care, float).reshape(-1, 4)
    )


def found(boxes: Any, scores: Any, names: Sequence[str] | str = "Car", *, height: Any = 60.0) -> Detections:
    """Detections, as `truth`."""
    labels = truth(boxes, names, height=height)
    return Detections(labels.names, np.array(scores, dtype=np.float64).reshape(-1), labels.bboxes, labels.boxes)


def image_boxes(boxes: np.ndarray, height: np.ndarray) -> np.ndarray:
    """One image box a box, as wide as its height and around 20 times its x, so that near boxes share pixels."""
    x = 600 + 20 * boxes[:, 0]
    return np.stack((x - height / 2, 180 - height / 2, x + height / 2, 180 + height / 2), 1)


def grid(count: int, first: int = 0) -> np.ndarray:
    """Cars far from each other, (count, 7), no two turned alike."""
    index = np.arange(first, first + count)
    row = [np.full(count, v) for v in (1.6, 3.9, 1.5, 1.6)]
    return np.stack((8.0 * (index % 8) - 30, row[0], 8.0 * (index // 8) + 6, *row[1:], 0.37 * index), 1)


def random_frames(seed: int, frames: int = 4, crowd: float = 4.0) -> Frames:
    """Boxes that touch each other, of all types, sizes and levels; detections near them, some twice, and elsewhere."""
    rng = np.random.default_rng(seed)
    labelled, detected = [], []
    for _ in range(frames):
        count = int(rng.poisson(crowd))
        names = rng.choice(TYPES, count, p=(0.35, 0.2, 0.15, 0.15, 0.1, 0.05))
        boxes = _boxes(rng, count)
        heights = rng.choice([15.0, 25.0, 33.0, 40.0, 70.0], count, p=(0.1, 0.1, 0.2, 0.1, 0.5))
        regions = image_boxes(_boxes(rng, 2), rng.uniform(20, 90, 2))
        labelled.append(
            truth(
                boxes,
                list(names),
                height=heights,
                occluded=rng.choice(4, count, p=(0.6, 0.2, 0.1, 0.1)),
                truncated=rng.choice([0.0, 0.15, 0.3, 0.4, 0.6], count, p=(0.6, 0.1, 0.1, 0.1, 0.1)),
                dont_care=regions,
            )
        )
        near = np.repeat(np.arange(count), rng.integers(0, 4, count)) if count else np.zeros(0, int)
        moved = boxes[near] + rng.normal(0, 1, (len(near), 7)) * [0.2, 0.1, 0.2, 0.2, 0.1, 0.1, 0.1]
        said = np.where(rng.random(len(near)) < 0.8, names[near], rng.choice(TYPES[:3], len(near)))
        said[said == "Van"], said[said == "Person_sitting"], said[said == "Truck"] = "Car", "Pedestrian", "Car"
        strays = int(rng.integers(0, 3))
        placed = np.concatenate((moved, _boxes(rng, strays)))
        said = np.concatenate((said, rng.choice(TYPES[:3], strays)))
        high = np.concatenate((heights[near] + rng.choice([-4.0, 0.0, 5.0], len(near)), rng.uniform(15, 60, strays)))
        scores = rng.permutation(10_000)[: len(placed)] / 1e4 + rng.random() / 1e5  # no ties
        detected.append(found(placed, scores, list(said), height=high))
    return labelled, detected


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    place = np.stack((rng.uniform(-5, 5, count), rng.normal(1.6, 0.1, count), rng.uniform(6, 14, count)), 1)
    sizes = rng.uniform([1.5, 1.3, 1.2], [4.0, 1.9, 2.2], (count, 3))
    return np.concatenate((place, sizes, rng.uniform(-4, 4, (count, 1))), 1)


def shuffled(frames: Frames, seed: int) -> Frames:
    """The frames in another order."""
    order = np.random.default_rng(seed).permutation(len(frames[0]))
    return [frames[0][n] for n in order], [frames[1][n] for n in order]


def moved(frames: Frames, turn: float, shift: tuple[float, float]) -> Frames:
    """All boxes turned about the camera's y axis and shifted in x and z; image boxes stay."""
    cos, sin = np.cos(turn), np.sin(turn)

    def place(boxes: np.ndarray) -> np.ndarray:
        x, z = boxes[:, 0], boxes[:, 2]
        columns = cos * x + sin * z + shift[0], boxes[:, 1], -sin * x + cos * z + shift[1]
        return np.stack((*columns, *boxes[:, 3:6].T, boxes[:, 6] + turn), 1)

    labelled, detected = frames
    return [replace(one, boxes=place(one.boxes)) for one in labelled], [
        replace(one, boxes=place(one.boxes)) for one in detected
    ]


# --- the metric once more, one box after the other ---

OVERLAP = {  # class: strict and loose, in 2D and elsewhere
    "Car": {"2D": (0.7, 0.7), "BEV": (0.7, 0.5), "3D": (0.7, 0.5)},
    "Pedestrian": {"2D": (0.5, 0.5), "BEV": (0.5, 0.25), "3D": (0.5, 0.25)},
    "Cyclist": {"2D": (0.5, 0.5), "BEV": (0.5, 0.25), "3D": (0.5, 0.25)},
}


def footprint(box: np.ndarray) -> Polygon:
    x, _, z, length, _, width, ry = box
    cos, sin = np.cos(ry), np.sin(ry)
    signs = ((1, 1), (-1, 1), (-1, -1), (1, -1))
    local = [(a * length / 2, b * width / 2) for a, b in signs]
    return Polygon([(x + cos * dx + sin * dz, z - sin * dx + cos * dz) for dx, dz in local])


def overlap(view: str, a: Any, i: int, b: Any, j: int) -> float:
    """IoU of box i of one frame's boxes with box j of another's."""
    if view == "2D":
        (p, q), shared = (one.bboxes[n] for one, n in ((a, i), (b, j))), pixels(a.bboxes[i], b.bboxes[j])
        areas = [(r[2] - r[0]) * (r[3] - r[1]) for r in (p, q)]
        return shared / (sum(areas) - shared)
    first, second = a.boxes[i], b.boxes[j]
    shapes = footprint(first), footprint(second)
    shared = shapes[0].intersection(shapes[1]).area
    if view == "BEV":
        return shared / (shapes[0].area + shapes[1].area - shared)
    both = shared * max(0.0, min(first[1], second[1]) - max(first[1] - first[4], second[1] - second[4]))
    return both / (first[3:6].prod() + second[3:6].prod() - both)


def pixels(p: np.ndarray, q: np.ndarray) -> float:
    sides = [min(p[k + 2], q[k + 2]) - max(p[k], q[k]) for k in (0, 1)]
    return max(sides[0], 0.0) * max(sides[1], 0.0)


def status(name: str, level: int, kind: str, height: float, hidden: float, cut: float) -> int:
    neighbour = {"Car": "Van", "Pedestrian": "Person_sitting"}.get(name)
    easy = height > (40, 25, 25)[level] and hidden <= level and cut <= (0.15, 0.3, 0.5)[level]
    return (0 if easy else 1) if kind == name else 1 if kind == neighbour else -1


def naive(frames: Frames, name: str, view: str, level: int, loose: bool) -> dict[str, float]:
    """AP11, AP40 and the exact area of one class, view and level, as the specification tells it step by step."""
    threshold = OVERLAP[name][view][int(loose)]
    scenes, total = [], 0
    for labels, detections in zip(*frames):
        table = [
            [overlap(view, labels, i, detections, j) for j in range(len(detections.names))]
            for i in range(len(labels.names))
        ]
        high = labels.bboxes[:, 3] - labels.bboxes[:, 1]
        gts = [
            status(name, level, *row) for row in zip(labels.names, high, labels.occluded, labels.truncated, strict=True)
        ]
        low = [bool(box[3] - box[1] < (40, 25, 25)[level]) for box in detections.bboxes]
        dts = [1 if small else 0 if kind == name else -1 for small, kind in zip(low, detections.names)]
        total += gts.count(0)
        scenes.append((labels, detections, table, gts, dts))
    hits = sorted((s for scene in scenes for s in first_pass(*scene, threshold)), reverse=True)
    curve = [second_pass(scenes, threshold, view, theta) for theta in walk(hits, total)]
    precision = [tp / (tp + fp) if tp + fp else 0.0 for tp, fp in curve] + [0.0] * 41
    best = [max(precision[k:]) for k in range(41)]
    points = [second_pass(scenes, threshold, view, theta) for theta in hits]
    points = [(tp / total, tp / (tp + fp) if tp + fp else 0.0) for tp, fp in points]
    area, before = 0.0, 0.0
    for recall in sorted({r for r, _ in points}):
        area += (recall - before) * max(p for r, p in points if r >= recall)
        before = recall
    return {"AP11": 100 / 11 * sum(best[::4]), "AP40": 100 / 40 * sum(best[1:]), "exact": 100 * area, "boxes": total}


def first_pass(_labels: Any, detections: Any, table: Any, gts: Any, dts: Any, threshold: float) -> list[float]:
    taken: set[int] = set()
    hits = []
    for i, kind in enumerate(gts):
        fits = [j for j, d in enumerate(dts) if d >= 0 and j not in taken and table[i][j] > threshold]
        if kind < 0 or not fits:
            continue
        j = max(fits, key=lambda n: detections.scores[n])
        taken.add(j)
        if kind == 0 and dts[j] == 0:
            hits.append(float(detections.scores[j]))
    return hits


def walk(hits: list[float], total: int) -> list[float]:
    emitted, recall = [], 0.0
    for i, score in enumerate(hits, 1):
        left, right = i / total, (i + 1) / total if i < len(hits) else i / total
        if right - recall < recall - left and i < len(hits):
            continue
        emitted.append(score)
        recall += 1 / 40
    return emitted


def second_pass(scenes: Any, threshold: float, view: str, theta: float) -> tuple[int, int]:
    tp = fp = 0
    for labels, detections, table, gts, dts in scenes:
        live = [j for j, d in enumerate(dts) if d >= 0 and detections.scores[j] >= theta]
        taken: set[int] = set()
        for i, kind in enumerate(gts):
            if kind < 0:
                continue
            fits = [j for j in live if j not in taken and table[i][j] > threshold]
            counted = [j for j in fits if dts[j] == 0]
            if not fits:
                continue
            j = max(counted, key=lambda n: table[i][n]) if counted else fits[0]
            taken.add(j)
            tp += kind == 0 and dts[j] == 0
        for j in live:
            if dts[j] or j in taken:
                continue
            box = detections.bboxes[j]
            own = (box[2] - box[0]) * (box[3] - box[1])
            fp += not (view == "2D" and any(pixels(r, box) / own > threshold for r in labels.dont_care))
    return tp, fp
