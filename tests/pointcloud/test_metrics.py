"""From LiDAR boxes to KITTI's figures: what is kept, padding, batches, real frames, and wrong predictions."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from limbeck.engine.registry import METRICS
from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.pointcloud.data.frames import CLASSES, TYPES, Calibration, Frame, default_calibration
from limbeck.pointcloud.kitti_eval import Detections, FrameTruth, evaluate
from limbeck.pointcloud.metrics import KittiMetric, to_kitti, truth_tensors

DATA = os.environ.get("LIMBECK_DATA")
NAMES = {"bev_ap40", "bev_ap40_strict", "3d_ap40", "3d_ap40_strict", "bev_ap_exact", "3d_ap_exact", "ap40_ceiling"}
SIZES = {"Car": (3.9, 1.6, 1.5), "Pedestrian": (0.8, 0.6, 1.7), "Cyclist": (1.8, 0.6, 1.7), "Van": (5.0, 1.9, 2.2)}


def frame(names: tuple[str, ...], seed: int = 0, calibration: Calibration | None = None) -> Frame:
    """Objects side by side between 8 and 20 metres ahead, all easy."""
    rng, camera, count = np.random.default_rng(seed), calibration or default_calibration(), len(names)
    place = np.stack((rng.uniform(12, 20, count), np.linspace(-7, 7, count + 1)[:-1], rng.normal(-1.7, 0.1, count)), 1)
    sizes = np.array([SIZES.get(name, (6.0, 2.5, 3.0)) for name in names]).reshape(count, 3)
    yaw = rng.normal(0, 0.1, (count, 1))
    boxes = np.concatenate((place, sizes, yaw), 1).astype(np.float32)
    zeros = np.zeros(count)
    bboxes = camera.clipped(camera.project(boxes)).astype(np.float32)
    regions = np.full((seed % 3, 4), 7, np.float32)
    return Frame(
        str(seed), np.zeros((1, 4), np.float32), boxes, names, zeros, zeros.astype(np.int64), bboxes, regions, camera
    )


def frames(count: int = 6) -> list[Frame]:
    kinds = [("Car", "Pedestrian", "Cyclist"), (), ("Van", "Car", "Car", "Misc"), ("Pedestrian",), ("Tram", "Cyclist")]
    return [frame(kinds[n % 5], n) for n in range(count)]


def batch(scenes: list[Frame], noise: float = 0.05, first: int = 0, strays: int = 1) -> dict[str, Any]:
    """A prediction as the adapter gives it: each object of a class once, and boxes where nothing is."""
    rows = []
    for n, scene in enumerate(scenes, first):
        rng = np.random.default_rng(1000 + n)
        kept = scene.labels >= 0
        boxes, labels = scene.boxes[kept], scene.labels[kept]
        boxes = boxes + rng.normal(0, noise, boxes.shape)
        boxes = np.concatenate((boxes, boxes[:strays] + np.array([20, 0, 0, 0, 0, 0, 0])))
        labels = np.concatenate((labels, labels[:strays]))
        rows.append((boxes, labels, rng.random(len(labels))))
    most = max([1, *(len(row[1]) for row in rows)])
    made = dict(
        boxes=torch.zeros(len(scenes), most, 7),
        pred=torch.full((len(scenes), most), -1),
        scores=torch.zeros(len(scenes), most),
        ids=torch.arange(first, first + len(scenes)),
        classes=torch.tensor(3),
    )
    for n, (boxes, labels, scores) in enumerate(rows):
        for name, values in (("boxes", boxes), ("pred", labels), ("scores", scores)):
            made[name][n, : len(labels)] = torch.as_tensor(values)
    return made | truth_tensors(scenes)


def measured(*batches: dict[str, Any]) -> KittiMetric:
    metric = METRICS.make({"type": "KittiMetric"})
    metric.update(batches)
    return metric


# --- from LiDAR to KITTI ---


def test_kept_detections_touch_the_image_and_lie_in_the_range():
    camera, rng = default_calibration(), np.random.default_rng(0)
    place = rng.uniform([-10, -45, -4], [80, 45, 1], (400, 3))
    boxes = np.concatenate((place, rng.uniform(0.5, 5, (400, 3)), rng.uniform(-4, 4, (400, 1))), 1)
    labels, scores = rng.integers(0, 3, 400), rng.random(400)
    found = to_kitti(boxes, scores, labels, camera)
    kept = 0
    for box, label, score, image, place in zip(boxes, labels, scores, camera.project(boxes), camera.to_camera(boxes)):
        x1, y1, x2, y2 = image
        in_range = 0 < box[0] < 70.4 and -40 < box[1] < 40 and -3 < box[2] < 0
        if in_range and x1 < 1242 and y1 < 375 and x2 > 0 and y2 > 0:
            assert found.names[kept] == CLASSES[label]
            assert found.scores[kept] == score
            assert found.bboxes[kept] == pytest.approx([max(x1, 0), max(y1, 0), min(x2, 1242), min(y2, 375)])
            assert found.boxes[kept] == pytest.approx(place)
            kept += 1
    assert 50 < kept == len(found.names) < 350


def test_the_conversion_asks_a_camera_for_two_things_only():
    class Camera:
        image_size = (100, 50)

        def to_camera(self, boxes: np.ndarray) -> np.ndarray:
            return boxes * 2

        def project(self, boxes: np.ndarray) -> np.ndarray:
            return np.array(
                [(-10, 10, 20, 60), (99, 0, 120, 20), (100, 0, 120, 20), (5, 5, 9, 9), (5, -9, 9, 0)], float
            )

    boxes = np.tile([10.0, 0, -1, 4, 2, 2, 0], (5, 1))
    boxes[3, 2] = 0.0  # the range is open
    found = to_kitti(boxes, np.arange(5), np.array([0, 1, 2, 0, 1]), Camera())
    assert found.names == ["Pedestrian", "Cyclist"]
    assert found.bboxes.tolist() == [[0, 10, 20, 50], [99, 0, 100, 20]]
    assert (found.boxes == boxes[:2] * 2).all()


@pytest.mark.skipif(find_spec("mmdet3d") is None, reason="needs mmdet3d")
def test_the_conversion_is_that_of_mmdet3d_for_boxes_ahead_of_the_camera():
    from limbeck.engine.mmcv_ops import install

    install()
    from mmdet3d.evaluation.metrics import kitti_metric
    from mmdet3d.structures import LiDARInstance3DBoxes

    rng = np.random.default_rng(1)
    tilt = np.array([[0.0, -1, 0, 0.01], [0.02, 0, -1, -0.08], [1, 0, 0.02, -0.27]])
    camera = replace(default_calibration(), velo_to_cam=tilt)
    place = rng.uniform([6, -45, -4], [80, 45, 1], (400, 3))
    boxes = np.concatenate((place, rng.uniform(0.5, 5, (400, 3)), rng.uniform(-4, 4, (400, 1))), 1).astype(np.float32)
    scores, labels = rng.random(400), rng.integers(0, 3, 400)
    view = dict(lidar2cam=np.concatenate((tilt, [[0, 0, 0, 1]])), height=375, width=1242)
    info = dict(sample_idx=0, images=dict(CAM2=view | dict(cam2img=np.concatenate((camera.P2, [[0, 0, 0, 1]])))))
    theirs = kitti_metric.KittiMetric.__new__(kitti_metric.KittiMetric)
    theirs.default_cam_key, theirs.pcd_limit_range = "CAM2", [0, -40, -3, 70.4, 40, 0.0]
    predicted = dict(bboxes_3d=LiDARInstance3DBoxes(torch.tensor(boxes)), labels_3d=torch.tensor(labels))
    wanted = theirs.convert_valid_bboxes(predicted | dict(scores_3d=torch.tensor(scores)), info)
    found = to_kitti(boxes, scores, labels, camera)
    assert found.scores.tolist() == wanted["scores"].tolist()
    assert found.names == [CLASSES[label] for label in wanted["label_preds"]]
    assert found.boxes[:, :6] == pytest.approx(wanted["box3d_camera"][:, :6], abs=1e-4)
    assert np.cos(found.boxes[:, 6] - wanted["box3d_camera"][:, 6]) == pytest.approx(1.0, abs=1e-9)
    assert found.bboxes == pytest.approx(camera.clipped(wanted["bbox"]), abs=1e-2)


# --- the metric ---


def test_figures_are_those_of_the_frames_themselves():
    scenes = frames(40)
    one = batch(scenes)
    truth = [
        FrameTruth(f.names, f.truncated, f.occluded, f.bboxes, f.calibration.to_camera(f.boxes), f.dont_care)
        for f in scenes
        if f.calibration is not None
    ]
    found: list[Detections] = []
    for n, scene in enumerate(scenes):
        real = one["pred"][n] >= 0
        assert scene.calibration is not None
        arrays = [one[name][n][real].double().numpy() for name in ("boxes", "scores")]
        found.append(to_kitti(*arrays, one["pred"][n][real].numpy(), scene.calibration))
    result = evaluate(truth, found)
    values = measured(one).values()
    assert set(values) == NAMES
    for name, view, kind, strictness in (
        ("bev_ap40", "BEV", "AP40", "loose"),
        ("3d_ap40_strict", "3D", "AP40", "strict"),
        ("3d_ap_exact", "3D", "exact", "loose"),
    ):
        wanted = result.overall(view, "moderate", kind=kind, strictness=strictness)  # type: ignore[arg-type]
        assert 0 < values[name] == pytest.approx(wanted, abs=1e-3)
    assert result.boxes[:, 1].tolist() == measured(one).per_class()["boxes"] == [16, 16, 24]


def test_batches_add_up_in_any_cut_and_order_and_a_sample_counts_once():
    scenes = frames(11)
    whole = measured(batch(scenes)).values()
    parts = [batch(scenes[a:b], first=a) for a, b in ((7, 11), (0, 3), (3, 7))]
    assert measured(*parts).values() == pytest.approx(whole, abs=1e-9)
    metric = measured(*parts)
    metric.update([batch(scenes[:3], noise=3.0)])
    assert metric.values() == pytest.approx(whole, abs=1e-9)


def test_perfect_boxes_reach_the_ceiling_and_their_number_is_given():
    metric = measured(batch(frames(10), noise=0.0, strays=0))
    values, per_class = metric.values(), metric.per_class()
    assert per_class["boxes"] == [4.0, 4.0, 6.0]
    assert per_class["ap40_ceiling"] == pytest.approx([7.5, 7.5, 12.5])
    assert per_class["bev_ap40"] == per_class["3d_ap40_strict"] == pytest.approx([7.5, 7.5, 12.5])
    assert values["bev_ap40"] == values["3d_ap40"] == values["ap40_ceiling"] == pytest.approx(27.5 / 3)
    assert values["bev_ap_exact"] == values["3d_ap_exact"] == pytest.approx(100)
    assert metric.result().log()["Car_3D_AP40_moderate_strict"] == 12.5


def test_a_class_without_boxes_is_no_part_of_the_mean():
    metric = measured(batch([frame(("Car",), n) for n in range(5)], noise=0.0, strays=0))
    assert metric.values()["bev_ap_exact"] == pytest.approx(100)
    assert metric.per_class()["bev_ap_exact"] == pytest.approx([0, 0, 100])


def test_what_is_predicted_can_be_kept_and_the_teacher_is_not_looked_at():
    one = batch(frames(6))
    kept = load(save(one))
    metric = KittiMetric()
    metric.update([kept], teacher=[{"anything": 1}])
    values = metric.values()
    assert values == measured(one).values()
    metric.reset()
    with pytest.raises(ConfigError, match="no predictions"):
        metric.values()


def test_half_precision_and_no_place_for_detections_are_taken():
    one = batch(frames(6))
    half = one | {"boxes": one["boxes"].half(), "scores": one["scores"].half()}
    assert measured(half).values()["bev_ap_exact"] > 0
    none = dict(boxes=torch.zeros(6, 0, 7), scores=torch.zeros(6, 0), pred=torch.zeros(6, 0, dtype=torch.int64))
    assert measured(one | none).values()["bev_ap_exact"] == 0


def test_labels_are_padded_and_unknown_types_are_misc():
    scenes = [frame(("Car", "Van")), replace(frame(("Bus",)), dont_care=np.ones((2, 4), np.float32)), frame(())]
    found = truth_tensors(scenes)
    assert found["gt_types"].tolist() == [
        [TYPES.index("Car"), TYPES.index("Van")],
        [TYPES.index("Misc"), -1],
        [-1, -1],
    ]
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    assert shapes["gt_boxes"] == (3, 2, 7)
    assert shapes["gt_bboxes"] == shapes["dont_care"] == (3, 2, 4)
    assert shapes["P2"] == (3, 3, 4)
    assert found["dont_care"][:, :, 0].tolist() == [[0, 0], [1, 1], [0, 0]]


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda b: b.pop("gt_boxes"), ConfigError, "no gt_boxes; the metric needs a split with labels"),
        (lambda b: b.pop("P2"), ConfigError, "no P2"),
        (lambda b: b.update(scores=b["scores"][:, 1:]), ShapeMismatch, "scores .* do not fit boxes"),
        (
            lambda b: b.update(boxes=b["boxes"][..., :6]),
            ShapeMismatch,
            r"boxes .* are not \(B, N, 7\) of the 6 samples",
        ),
        (lambda b: b.update(gt_bboxes=b["gt_bboxes"][:, 1:]), ShapeMismatch, "gt_bboxes .* do not fit gt_boxes"),
        (lambda b: b.update(R0=b["R0"][1:]), ShapeMismatch, r"R0 .* is not \(6, 3, 3\)"),
        (lambda b: b["scores"].fill_(float("nan")), ConfigError, "box or score of sample 0 is not finite"),
        (lambda b: b["pred"].fill_(3), ShapeMismatch, "class 3 is not in 0 to 2"),
    ],
)
def test_wrong_predictions_are_user_errors(change, error, said):
    one = batch(frames(6))
    change(one)
    with pytest.raises(error, match=said):
        KittiMetric().update([one])


def test_a_split_without_a_counted_box_and_a_frame_without_a_camera_are_user_errors():
    metric = measured(batch([frame(("Van",))]))
    for call in (metric.values, metric.per_class, metric.result):
        with pytest.raises(ConfigError, match="no frame of the split has a Pedestrian, Cyclist or Car that counts"):
            call()
    with pytest.raises(ConfigError, match="frame 0 has no camera"):
        truth_tensors([replace(frame(("Car",)), calibration=None)])


@pytest.mark.skipif(DATA is None, reason="LIMBECK_DATA is not set")
def test_real_frames_found_as_labelled_reach_the_ceiling():
    from limbeck.pointcloud.data.kitti import KittiFolder

    folder = KittiFolder(Path(str(DATA)) / "kitti_frames")
    scenes = [folder.frame(name, "val") for name in folder.ids("val")]
    counted = dict.fromkeys(CLASSES, 0)
    for scene in scenes:
        for name, level in zip(scene.names, scene.difficulties()):
            if name in counted and 0 <= level <= 1:
                counted[name] += 1
    metric = measured(batch(scenes, noise=0.0, strays=0))
    assert dict(zip(CLASSES, metric.per_class()["boxes"])) == counted
    values = metric.values()
    assert counted["Car"] > 10
    assert values["bev_ap_exact"] == values["3d_ap_exact"] == pytest.approx(100, abs=0.1)
    assert values["3d_ap40_strict"] == pytest.approx(values["ap40_ceiling"], abs=0.1)
    noisy = measured(batch(scenes, noise=0.1)).values()
    assert 0 < noisy["3d_ap40_strict"] < noisy["bev_ap40"] <= noisy["ap40_ceiling"]
