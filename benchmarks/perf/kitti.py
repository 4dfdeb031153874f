"""Seconds of KITTI's metric on as many frames as its validation set has: python -m benchmarks.perf.kitti"""

from __future__ import annotations

import json
import time
from statistics import median
from typing import Annotated

import numpy as np
import typer

from limbeck.pointcloud.data.frames import CLASSES
from limbeck.pointcloud.kitti_eval import Detections, FrameTruth, evaluate

SIZES = {"Car": (3.9, 1.5, 1.6), "Pedestrian": (0.8, 1.7, 0.6), "Cyclist": (1.8, 1.7, 0.6), "Van": (5.1, 2.2, 1.9)}
SHARE = (0.62, 0.2, 0.1, 0.08)  # of the labelled boxes
FOCAL = 721.5  # pixels


def frame(rng: np.random.Generator, labelled: float, found: float) -> tuple[FrameTruth, Detections]:
    """Boxes on the road, detections near most of them, often several, and others where nothing is."""
    count, strays = int(rng.poisson(labelled)), int(rng.poisson(found * 0.5))
    names = rng.choice(list(SIZES), count, p=SHARE)
    boxes = _boxes(rng, names)
    rows = np.repeat(np.arange(count), rng.poisson(found * 0.5 / labelled, count))
    near = boxes[rows] + rng.normal(0, 1, (len(rows), 7)) * [0.15, 0.05, 0.15, 0.08, 0.03, 0.04, 0.05]
    detected = np.concatenate((names[rows], rng.choice(CLASSES, strays)))
    detected[detected == "Van"] = "Car"
    placed = np.concatenate((near, _boxes(rng, detected[len(rows) :])))
    scores = np.concatenate((rng.beta(4, 2, len(rows)), rng.beta(1, 6, strays)))
    truth = FrameTruth(
        names.tolist(), rng.random(count) ** 4, rng.integers(0, 4, count), _image(boxes), boxes, np.zeros((0, 4))
    )
    return truth, Detections(detected.tolist(), scores, _image(placed), placed)


def _boxes(rng: np.random.Generator, names: np.ndarray) -> np.ndarray:
    count = len(names)
    z = rng.uniform(4, 68, count)
    sizes = np.array([SIZES[name] for name in names]).reshape(count, 3) * rng.normal(1, 0.05, (count, 3))
    place = np.stack((rng.uniform(-0.6, 0.6, count) * z, rng.normal(1.7, 0.1, count), z), 1)
    return np.concatenate((place, sizes, rng.uniform(-np.pi, np.pi, (count, 1))), 1)


def _image(boxes: np.ndarray) -> np.ndarray:
    """Roughly where the boxes are in the image, (M, 4)."""
    scale = FOCAL / np.maximum(boxes[:, 2], 1)
    x, bottom = 610 + scale * boxes[:, 0], 173 + scale * boxes[:, 1]
    half = scale * boxes[:, 3] / 2
    return np.stack((x - half, bottom - scale * boxes[:, 4], x + half, bottom), 1)


def main(
    frames: Annotated[int, typer.Option(help="How many; KITTI's validation set has 3769.")] = 3769,
    labelled: Annotated[float, typer.Option(help="Labelled boxes a frame, on average.")] = 6.0,
    found: Annotated[float, typer.Option(help="Detections a frame, on average.")] = 20.0,
    rounds: Annotated[int, typer.Option(help="Repetitions; the median counts.")] = 3,
) -> None:
    """Time strict and loose, BEV and 3D, three classes and three levels.

    Example: OMP_NUM_THREADS=1 python -m benchmarks.perf.kitti --rounds 5
    """
    rng = np.random.default_rng(0)
    made = [frame(rng, labelled, found) for _ in range(frames)]
    truth, detections = [labels for labels, _ in made], [boxes for _, boxes in made]
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        result = evaluate(truth, detections)
        seconds.append(time.perf_counter() - start)
    shape = dict(
        frames=frames, boxes=sum(len(t.names) for t in truth), detections=sum(len(d.names) for d in detections)
    )
    overall = round(result.overall("BEV", "moderate"), 3)
    typer.echo(json.dumps(shape | dict(bev_ap40_strict=overall, seconds=round(median(seconds), 3), rounds=rounds)))


if __name__ == "__main__":
    typer.run(main)
