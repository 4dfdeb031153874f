"""The picture of examples of detection: colours at known boxes, and who found what, counted by loops."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.leaderboard.pictures.example_images import Shown
from limbeck.leaderboard.pictures.panels import PANELS
from limbeck.leaderboard.pictures.panels_detection import (
    BOTH,
    FOUND,
    GAINED,
    LOST,
    MISSED,
    SIDE,
    Detections,
    differences,
    draw_detection,
    found_objects,
    overlaps,
)
from tests.leaderboard.pictures.test_panels import Legends

PALETTE = [(10, 20, 230), (240, 30, 220)]
DATASET = SimpleNamespace(classes=["cell", "never seen"], palette=PALETTE)
TITLES = dict(teacher="teacher", plain="plain student", best="best student: CWD")
SIZE = (56, 112)  # height and width; drawn four times as large
TRUTH = [[8, 8, 24, 24], [40, 8, 56, 24], [72, 8, 88, 24], [8, 32, 24, 48]]
# plain finds objects 0 and 2, best 0 and 1; nobody finds 3: what lies there has a low score, or the other class
FINDS = dict(
    teacher=[(TRUTH[0], 0, 0.9)],
    plain=[(TRUTH[0], 0, 0.9), (TRUTH[2], 0, 0.8), (TRUTH[3], 0, 0.29)],
    best=[(TRUTH[0], 0, 0.9), (TRUTH[1], 0, 0.8), (TRUTH[3], 1, 0.2)],
)


def prediction(finds: list[tuple[list[int], int, float]]) -> list[dict[str, Any]]:
    """As `DetectionAdapter.predict` gives it, with a row of padding in each."""
    boxes, pred, scores = zip(*finds, ([0, 0, 0, 0], -1, 0.0))
    return [
        dict(
            boxes=torch.tensor([boxes], dtype=torch.float32),
            pred=torch.tensor([pred]),
            scores=torch.tensor([scores]),
            gt_boxes=torch.tensor([[*TRUTH, [0, 0, 0, 0]]], dtype=torch.float32),
            gt_labels=torch.tensor([[0, 0, 0, 0, -1]]),
            ids=torch.tensor([7]),
        )
    ]


def draw(legend: Any = None) -> Image.Image:
    pixels = torch.full((1, 3, *SIZE), 200, dtype=torch.uint8)
    predictions = {member: prediction(finds) for member, finds in FINDS.items()}
    shown = Shown(7, "random", dict(inputs=pixels), predictions, {m: {"mAP": 40.0, "AP50": 80.0} for m in FINDS})
    return draw_detection([shown], "toy", TITLES, DATASET, legend or Legends())


def outline(picture: Image.Image, column: int, box: list[int]) -> set[Any]:
    """Colours along the bottom of a box, which no score covers, in one of the columns."""
    factor = SIDE // SIZE[1]
    left, top = 10 + column * (SIDE + 10), 10 + 3 * 25  # gaps, heading, titles and the row's caption
    y = top + box[3] * factor - 1
    return {picture.getpixel((left + x, y)) for x in range(box[0] * factor + 4, box[2] * factor - 4)}


def test_boxes_have_the_colours_of_their_class_where_they_lie() -> None:
    picture = draw()
    assert PANELS["object-detection"] is draw_detection
    background = {(200, 200, 200)}
    columns = dict(image=[], truth=TRUTH, teacher=[TRUTH[0]], plain=[TRUTH[0], TRUTH[2]], best=[TRUTH[0], TRUTH[1]])
    for column, drawn in enumerate(columns.values()):
        for box in TRUTH:
            assert outline(picture, column, box) == ({PALETTE[0]} if box in drawn else background)


def test_last_column_says_who_found_each_object() -> None:
    picture = draw()
    for box, kind in zip(TRUTH, (BOTH, GAINED, LOST)):
        assert outline(picture, 5, box) == {FOUND[kind]}
    seen = outline(picture, 5, TRUTH[3])
    assert FOUND[MISSED] in seen  # dashes
    assert len(seen) == 2


def test_legend_has_what_occurs() -> None:
    legends = Legends()
    draw(legends)
    classes, signs = legends.entries
    assert classes == [("cell", PALETTE[0])]
    assert [colour for _, colour in signs] == list(FOUND)
    assert [text for text, _ in signs] == [
        "best student alone found it",
        "plain student alone found it",
        "both found it",
        "neither found it (dashed)",
    ]


def iou(a: Any, b: Any) -> float:
    wide, tall = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = wide * tall if wide > 0 and tall > 0 else 0.0
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def boxes(rng: np.random.Generator, count: int, around: np.ndarray | None = None) -> np.ndarray:
    if around is not None and len(around):
        return around[rng.integers(len(around), size=count)] + rng.uniform(-3, 3, (count, 4))
    corners = rng.uniform(0, 30, (count, 2))
    return np.concatenate((corners, corners + rng.uniform(8, 20, (count, 2))), 1)


@pytest.mark.parametrize("seed", range(5))
def test_differences_are_what_loops_count(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = Detections(boxes(rng, 12), rng.integers(0, 2, 12))
    students = [
        Detections(boxes(rng, 15, truth.boxes), rng.integers(0, 2, 15), rng.uniform(0, 1, 15)) for _ in range(2)
    ]

    def finds(student: Detections, box: Any, label: int) -> bool:
        assert student.scores is not None
        rows = zip(student.boxes, student.labels, student.scores)
        return any(k == label and s >= 0.3 and iou(b, box) >= 0.5 for b, k, s in rows)

    states = differences(truth, *students)
    plain, best = ([finds(s, b, k) for b, k in zip(truth.boxes, truth.labels)] for s in students)
    wanted = {(False, True): GAINED, (True, False): LOST, (True, True): BOTH, (False, False): MISSED}
    assert states.tolist() == [wanted[pair] for pair in zip(plain, best)]
    assert len(set(states.tolist())) > 2


def test_thresholds_count_themselves_and_empty_images_work() -> None:
    truth = Detections(np.array([[0.0, 0, 10, 10]]), np.array([0]))
    half = np.array([[0.0, 0, 10, 5]])
    assert overlaps(truth.boxes, half).tolist() == [[0.5]]
    assert found_objects(truth, Detections(half, np.array([0]), np.array([0.3]))).tolist() == [True]
    nothing = Detections(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))
    assert differences(truth, nothing, nothing).tolist() == [MISSED]
    assert differences(Detections(np.zeros((0, 4)), np.zeros(0, int)), nothing, nothing).tolist() == []


def test_crowds_are_not_counted() -> None:
    predictions = {member: prediction(finds) for member, finds in FINDS.items()}
    for found in predictions.values():
        found[0]["gt_crowd"] = torch.tensor([[False, True, False, False, False]])
    pixels = torch.full((1, 3, *SIZE), 200, dtype=torch.uint8)
    shown = Shown(7, "random", dict(inputs=pixels), predictions, {m: {"mAP": 1.0, "AP50": 1.0} for m in FINDS})
    picture = draw_detection([shown], "toy", TITLES, DATASET, Legends())
    assert FOUND[GAINED] not in outline(picture, 5, TRUTH[1])
