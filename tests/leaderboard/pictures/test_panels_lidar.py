"""The picture of examples of 3D detection: who found what by each class's overlap, and colours where objects lie."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.leaderboard.pictures.example_images import Shown
from limbeck.leaderboard.pictures.examples import LIDAR_IOU
from limbeck.leaderboard.pictures.panels import PANELS
from limbeck.leaderboard.pictures.panels_detection import BOTH, FOUND, GAINED, LOST, MISSED, Detections
from limbeck.leaderboard.pictures.panels_lidar import SIDE, draw_lidar, found_objects
from limbeck.leaderboard.site.examples import _colours
from tests.leaderboard.pages import text_of
from tests.leaderboard.pictures.test_masks import call
from tests.leaderboard.pictures.test_panels import Legends

CLASSES = ["Pedestrian", "Cyclist", "Car"]
EXTENT = (0.0, -20.0, -3.0, 40.0, 20.0, 1.0)
DATASET = SimpleNamespace(
    classes=CLASSES, palette=[(213, 94, 0), (0, 158, 115), (0, 114, 178)], point_cloud_range=EXTENT
)
TITLES = dict(teacher="teacher", plain="plain student", best="best student: CWD")
TYPES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc")


def car(x: float, y: float, yaw: float = 0.3) -> list[float]:
    return [x, y, -1.7, 4.0, 1.6, 1.5, yaw]


TRUTH = [car(8, 8), car(16, -8), car(24, 8), car(32, -8)]
# plain finds objects 0 and 2, best 0 and 1; nobody finds 3
FINDS = dict(teacher=TRUTH[:1], plain=[TRUTH[0], TRUTH[2]], best=[TRUTH[0], TRUTH[1]])


def prediction(finds: list[list[float]]) -> list[dict[str, Any]]:
    """As `PointCloudAdapter.predict` gives it; beside the objects a van, one out of range, and padding."""
    padding = [0.0] * 7
    types = [TYPES.index("Car")] * 4 + [TYPES.index("Van"), TYPES.index("Car"), -1]
    return [
        dict(
            boxes=torch.tensor([[*finds, padding]]),
            pred=torch.tensor([[2] * len(finds) + [-1]]),
            scores=torch.tensor([[0.9] * len(finds) + [0.0]]),
            gt_boxes=torch.tensor([[*TRUTH, car(10, 0), car(90, 0), padding]]),
            gt_types=torch.tensor([types]),
            gt_occluded=torch.tensor([[0, 1, 2, 0, 0, 3, 0]]),
        )
    ]


def test_objects_have_the_colours_of_who_found_them() -> None:
    predictions = {member: prediction(finds) for member, finds in FINDS.items()}
    points = torch.tensor([[5.0, 0, -1.7, 0.5]])
    metrics = {"plain": {"bev_ap40": 10.0, "3d_ap40": 5.0}, "best": {"bev_ap40": 20.0, "3d_ap40": 5.0}, "teacher": {}}
    legends = Legends()
    shown = Shown(7, "random", dict(inputs=[points]), predictions, metrics)
    picture = np.asarray(draw_lidar([shown], "toy", TITLES, DATASET, legends)).astype(int)
    assert PANELS["3d-object-detection"] is draw_lidar
    top = 10 + 3 * 25
    scale = SIDE / 40

    def there(column: int, box: list[float], colour: Any) -> bool:
        x, y = box[0], box[1]
        row, middle = top + (40 - x) * scale, 10 + column * (SIDE + 10) + (20 - y) * scale
        part = picture[int(row) - 25 : int(row) + 26, int(middle) - 25 : int(middle) + 26]
        return bool((np.abs(part - colour) < 50).all(2).sum() > 20)

    for column, finds in enumerate([TRUTH, *FINDS.values()]):
        assert [there(column, box, DATASET.palette[2]) for box in TRUTH] == [box in finds for box in TRUTH]
    for box, kind in zip(TRUTH, (BOTH, GAINED, LOST, MISSED)):
        assert there(4, box, FOUND[kind])
    classes, signs = legends.entries
    assert classes == [("Car", DATASET.palette[2])]
    assert [colour for _, colour in signs] == list(FOUND)


@pytest.mark.parametrize(("label", "least"), list(enumerate(LIDAR_IOU)))
def test_each_class_has_its_overlap(label: int, least: float) -> None:
    box = np.array([10.0, 2, -1, 2, 1, 1, 0.4])
    truth = Detections(box[None], np.array([label]))
    for share in (least + 0.02, least - 0.02):
        found = box.copy()
        found[3] *= share  # the same middle, shorter: the overlap is the share
        other = Detections(found[None], np.array([label]), np.array([0.9]))
        assert found_objects(truth, other).tolist() == [share > least]
    near = Detections(box[None], np.array([label]), np.array([0.29]))
    assert found_objects(truth, near).tolist() == [False]
    wrong = Detections(box[None], np.array([(label + 1) % 3]), np.array([0.9]))
    assert found_objects(truth, wrong).tolist() == [False]
    assert found_objects(truth, Detections(np.zeros((0, 7)), np.zeros(0, int), np.zeros(0))).tolist() == [False]


def test_caption_says_the_overlaps() -> None:
    assert "IoU 0.5 or more (0.25 of pedestrians and cyclists)" in _colours("3d-object-detection", "CWD")


def test_command_draws_frames_of_the_records(lidar_runs: SimpleNamespace, tmp_path: Any) -> None:
    words = ["--results", lidar_runs.results, "--runs", lidar_runs.runs, "--out", tmp_path]
    call("examples", "toy-lidar", *words, "--count", 1)
    call("build", "--results", lidar_runs.results, "--out", tmp_path)
    assert 'src="../examples/toy-lidar/big-small.v1.png"' in text_of(tmp_path / "index.html", "toy-lidar")
