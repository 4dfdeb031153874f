"""Average precision against a count by hand, pycocotools on the exported file, and cases that are easy to get wrong."""

from __future__ import annotations

import io
import json
import os
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.detection.metrics import DetectionMetric, coco_results, write_coco_results
from limbeck.engine.registry import METRICS
from limbeck.errors import ConfigError, OutputError, ShapeMismatch

pytest.importorskip("pycocotools")
DATA = os.environ.get("LIMBECK_DATA")

Scene = tuple[list[list[float]], list[int], list[float]]  # boxes, labels, and scores or crowd flags


def padded(rows: list[list[Any]], value: float, width: int) -> list[list[Any]]:
    empty: Any = [0.0] * 4 if width else value
    most = max(1, *(len(row) for row in rows)) if rows else 1
    return [[*row, *[empty] * (most - len(row))] for row in rows]


def batch(truth: list[Scene], found: list[Scene], first: int = 0, classes: int | None = 3) -> dict[str, Any]:
    """One prediction, as the adapter gives it."""
    made: dict[str, Any] = {"ids": torch.arange(first, first + len(truth))}
    for keys, scenes in ((("boxes", "pred", "scores"), found), (("gt_boxes", "gt_labels", "gt_crowd"), truth)):
        made[keys[0]] = torch.tensor(padded([s[0] for s in scenes], 0, 4), dtype=torch.float32).reshape(
            len(truth), -1, 4
        )
        made[keys[1]] = torch.tensor(padded([s[1] for s in scenes], -1, 0), dtype=torch.int64)
        made[keys[2]] = torch.tensor(padded([s[2] for s in scenes], 0.0, 0), dtype=torch.float32)
    made["gt_crowd"] = made["gt_crowd"].bool()
    return made | ({} if classes is None else {"classes": torch.tensor(classes)})


def measured(truth: list[Scene], found: list[Scene], **options: Any) -> DetectionMetric:
    metric = METRICS.make({"type": "DetectionMetric", **options})
    metric.update([batch(truth, found)])
    return metric


def random_scenes(
    seed: int, images: int = 5, classes: int = 3, crowds: bool = False
) -> tuple[list[Scene], list[Scene]]:
    """Objects, and detections near some of them, some twice, and elsewhere."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for _ in range(images):
        count = int(rng.integers(0, 5))
        corners = rng.uniform(0, 60, (count, 2))
        boxes = np.concatenate((corners, corners + rng.uniform(8, 40, (count, 2))), 1).astype(np.float32)
        labels = rng.integers(0, classes, count)
        flags = rng.random(count) < (0.3 if crowds else 0)
        truth.append((boxes.tolist(), labels.tolist(), flags.astype(float).tolist()))
        near = np.repeat(np.arange(count), rng.integers(0, 3, count)) if count else np.zeros(0, int)
        moved = boxes[near] + rng.normal(0, 2.5, (len(near), 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)  # a box turned inside out is none
        kinds = np.where(rng.random(len(near)) < 0.8, labels[near], rng.integers(0, classes, len(near)))
        corners = rng.uniform(0, 60, (int(rng.integers(0, 3)), 2))
        strays = np.concatenate((corners, corners + rng.uniform(8, 40, corners.shape)), 1)
        boxes = np.concatenate((moved, strays)).astype(np.float32)
        kinds = np.concatenate((kinds, rng.integers(0, classes, len(strays))))
        scores = rng.permutation(1000)[: len(boxes)] / 1000 + rng.random(len(boxes)) / 1e4  # no ties
        found.append((boxes.tolist(), kinds.tolist(), scores.astype(np.float32).tolist()))
    return truth, found


# --- an AP by hand ---


def overlap(a: list[float], b: list[float], crowd: bool) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0.0) * max(height, 0.0)
    area_a, area_b = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    return both / (area_a if crowd else area_a + area_b - both)


def naive(truth: list[Scene], found: list[Scene], classes: int = 3) -> tuple[dict[str, float], list[float]]:
    """One detection after the other, best score first, over all images; 101 levels of recall by a search for each."""
    table = np.full((10, classes), np.nan)
    for t, threshold in enumerate(np.linspace(0.5, 0.95, 10)):
        for k in range(classes):
            objects = [(i, box, crowd) for i, s in enumerate(truth) for box, y, crowd in zip(*s) if y == k]
            detections = [(score, i, box) for i, s in enumerate(found) for box, y, score in zip(*s) if y == k]
            real, taken, outcome = sum(not crowd for *_, crowd in objects), set(), []
            for _, i, box in sorted(detections, key=lambda one: -one[0]):
                fits = [
                    (overlap(box, other, False), n)
                    for n, (j, other, crowd) in enumerate(objects)
                    if j == i and not crowd and n not in taken and overlap(box, other, False) >= threshold
                ]
                if fits:
                    taken.add(max(fits)[1])
                    outcome.append(True)
                elif not any(
                    j == i and crowd and overlap(box, other, True) >= threshold for j, other, crowd in objects
                ):
                    outcome.append(False)
            if real:
                hits = np.cumsum(outcome) if outcome else np.zeros(0)
                recall, precision = hits / real, hits / np.arange(1, len(hits) + 1)
                levels = [precision[recall >= r] for r in np.linspace(0, 1, 101)]  # no tolerance, as COCO has none
                table[t, k] = 100 * np.mean([one.max() if one.size else 0.0 for one in levels])
    means = [float(np.nanmean(part)) for part in (table, table[0], table[5])]
    return dict(zip(("mAP", "AP50", "AP75"), means)), np.nan_to_num(table).mean(0).tolist()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_figures_are_those_counted_by_hand(seed, crowds):
    truth, found = random_scenes(seed, crowds=crowds)
    if not any(flag == 0 for scene in truth for flag in scene[2]):
        return
    metric = measured(truth, found)
    values, per_class = naive(truth, found)
    assert metric.values() == pytest.approx(values, abs=1e-9)
    assert metric.per_class() == {"AP": pytest.approx(per_class, abs=1e-9)}


def test_batches_add_up_in_any_cut_and_order():
    truth, found = random_scenes(7, images=9)
    whole = measured(truth, found).values()
    metric = DetectionMetric()
    for first, last in ((6, 9), (0, 4), (4, 6)):
        metric.update([batch(truth[first:last], found[first:last], first)])
    assert metric.values() == pytest.approx(whole, abs=1e-12)


# --- easy cases ---

BOX = [10.0, 10.0, 30.0, 40.0]


def test_a_perfect_detector_gets_everything_and_none_gets_nothing():
    truth, _ = random_scenes(3, images=6)
    perfect = [(boxes, labels, [0.9] * len(labels)) for boxes, labels, _ in truth]
    metric = measured(truth, perfect)
    assert metric.values() == pytest.approx({"mAP": 100.0, "AP50": 100.0, "AP75": 100.0})
    nothing = measured(truth, [([], [], []) for _ in truth])
    assert nothing.values() == {"mAP": 0.0, "AP50": 0.0, "AP75": 0.0}
    assert nothing.per_class() == {"AP": [0.0] * 3}


def test_one_box_of_iou_six_tenths_counts_at_three_thresholds_of_ten():
    found = [([[10.0, 10.0, 30.0, 28.5]], [1], [0.5])]  # 18.5 of 30 rows: IoU 0.617
    metric = measured([([BOX], [1], [0.0])], found)
    assert metric.values() == pytest.approx({"mAP": 30.0, "AP50": 100.0, "AP75": 0.0})
    assert metric.per_class() == {
        "AP": pytest.approx([0.0, 30.0, 0.0])
    }  # the others have no object: 0, not in the mean


def test_a_second_detection_of_an_object_is_wrong_and_its_rank_matters():
    twice = ([BOX, BOX, [50.0, 50.0, 60.0, 60.0]], [0, 0, 0])
    truth = [([BOX, [50.0, 50.0, 60.0, 60.0]], [0, 0], [0.0, 0.0])]
    first, last = (
        measured(truth, [(*twice, scores)]).values()["AP50"] for scores in ([0.9, 0.8, 0.7], [0.9, 0.5, 0.7])
    )
    assert last == pytest.approx(100.0)
    assert first == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)


def test_crowds_neither_help_nor_hurt():
    crowd = [40.0, 40.0, 90.0, 90.0]
    inside = [[45.0, 45.0, 55.0, 55.0], [60.0, 60.0, 70.0, 75.0]]
    truth = [([BOX, crowd], [0, 0], [0.0, 1.0])]
    metric = measured(truth, [([*inside, BOX], [0, 0, 0], [0.9, 0.8, 0.7])])
    assert metric.values()["mAP"] == pytest.approx(100.0)
    as_object = measured([([BOX, crowd], [0, 0], [0.0, 0.0])], [([*inside, BOX], [0, 0, 0], [0.9, 0.8, 0.7])])
    assert as_object.values()["mAP"] < 40
    with pytest.raises(ConfigError, match="no image of the split has an object"):
        measured([([crowd], [0], [1.0])], [([BOX], [0], [0.5])]).values()


def test_a_sample_that_comes_twice_counts_once():
    truth, found = random_scenes(11, images=4)
    metric = measured(truth, found)
    once = metric.values()
    metric.update([batch(truth[:2], [([], [], []), ([], [], [])], 0)])
    assert metric.values() == once


def test_false_detections_on_images_without_objects_count():
    truth: list[Scene] = [([BOX], [0], [0.0]), ([], [], [])]
    found = [([BOX], [0], [0.5]), ([BOX], [0], [0.9])]
    assert measured(truth, found).values()["mAP"] == pytest.approx(50.0)


def test_of_a_class_in_an_image_the_best_hundred_count():
    wrong = [[200.0 + i, 200.0, 210.0 + i, 210.0] for i in range(120)]
    scores = [0.9 - i / 1000 for i in range(120)]
    ranked = measured([([BOX], [0], [0.0])], [([*wrong[:99], BOX], [0] * 100, [*scores[:99], 0.1])]).values()
    beyond = measured([([BOX], [0], [0.0])], [([*wrong, BOX], [0] * 121, [*scores, 0.1])]).values()
    assert ranked["mAP"] == pytest.approx(1.0)
    assert beyond["mAP"] == 0.0


def test_sizes_are_given_where_asked():
    truth = [([[0.0, 0.0, 20.0, 20.0], [50.0, 0.0, 110.0, 60.0]], [0, 0], [0.0, 0.0])]
    metric = measured(truth, [([[0.0, 0.0, 20.0, 20.0]], [0], [0.9])], by_size=True)
    values = metric.values()
    assert {name: values[name] for name in ("APs", "APm", "APl")} == {
        "APs": pytest.approx(100.0),
        "APm": 0.0,
        "APl": 0.0,
    }
    assert values["mAP"] == pytest.approx(100 * 51 / 101)
    assert set(measured(truth, truth).values()) == {"mAP", "AP50", "AP75"}


def test_iou_does_not_depend_on_the_scale_of_either_axis():
    truth, found = random_scenes(5, images=8)

    def stretched(scenes):
        return [([[x1 * 4, y1 * 2, x2 * 4, y2 * 2] for x1, y1, x2, y2 in s[0]], s[1], s[2]) for s in scenes]

    assert measured(stretched(truth), stretched(found)).values() == pytest.approx(
        measured(truth, found).values(), abs=1e-9
    )


# --- the interface ---


def test_nothing_is_printed_and_the_teacher_is_not_looked_at(capsys):
    truth, found = random_scenes(2)
    metric = DetectionMetric()
    metric.update([batch(truth, found)], teacher=[{"anything": 1}])
    values = metric.values()
    assert set(values) == {"mAP", "AP50", "AP75"}
    assert capsys.readouterr() == ("", "")
    metric.reset()
    with pytest.raises(ConfigError, match="no predictions"):
        metric.values()
    metric.update([batch(truth, found)])
    assert metric.values() == values


def test_classes_are_those_that_the_prediction_says():
    truth: list[Scene] = [([BOX], [1], [0.0])]
    found: list[Scene] = [([BOX], [0], [0.5])]
    for classes, length in ((5, 5), (None, 2)):
        metric = DetectionMetric()
        metric.update([batch(truth, found, classes=classes)])
        assert metric.per_class() == {"AP": [0.0] * length}
    with pytest.raises(ShapeMismatch, match="class 1 is not in 0 to 0"):
        DetectionMetric().update([batch(truth, found, classes=1)])


def test_half_precision_and_no_place_for_detections_are_taken():
    truth, found = random_scenes(4)
    one = batch(truth, found)
    metric = DetectionMetric()
    metric.update([one | {"boxes": one["boxes"].half(), "scores": one["scores"].half()}])
    assert 0 < metric.values()["mAP"] < 100
    none = dict(boxes=torch.zeros(5, 0, 4), scores=torch.zeros(5, 0), pred=torch.zeros(5, 0, dtype=torch.int64))
    metric = DetectionMetric()
    metric.update([one | none])
    assert metric.values()["mAP"] == 0


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda b: b.pop("gt_boxes"), ConfigError, "no gt_boxes"),
        (lambda b: b.update(scores=b["scores"][:, 1:]), ShapeMismatch, "scores .* do not fit boxes"),
        (lambda b: b.update(boxes=b["boxes"][1:]), ShapeMismatch, r"boxes .* are not \(B, N, 4\) of the 5 samples"),
        (lambda b: b.update(gt_labels=b["gt_labels"][:, 1:]), ShapeMismatch, "gt_labels"),
        (lambda b: b["scores"][b["pred"] >= 0].numel() and b["scores"].fill_(float("nan")), ConfigError, "not finite"),
        (lambda b: b["boxes"].fill_(float("inf")), ConfigError, "sample 0 is not finite"),
    ],
)
def test_wrong_predictions_are_user_errors(change, error, said):
    truth, found = random_scenes(4)
    found[0] = ([BOX], [0], [0.5])
    one = batch(truth, found)
    change(one)
    with pytest.raises(error, match=said):
        DetectionMetric().update([one])


# --- the file of results ---


class Ids:
    """What of a data set the export needs."""

    image_ids = [107, 103, 111, 101, 109]
    category_ids = [4, 9, 6]

    def scale_factors(self, ids: np.ndarray) -> np.ndarray:
        return np.array([(0.5, 0.25)] * len(ids)) * (1 + ids[:, None])


def by_pycocotools(truth: dict[str, Any], path: Any) -> dict[str, float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = truth
        known.createIndex()
        run = COCOeval(known, known.loadRes(str(path)), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return {name: 100 * float(value) for name, value in zip(("mAP", "AP50", "AP75"), run.stats)}


def test_exported_file_gives_the_same_figures_by_pycocotools(tmp_path):
    truth, found = random_scenes(21, crowds=True)
    data: Any = Ids()
    one = batch(truth, found)
    path = tmp_path / "new" / "results.json"
    write_coco_results(path, [one, one], data)
    results = json.loads(path.read_text())
    assert len(results) == sum(len(s[1]) for s in found)
    annotations = []
    for i, (boxes, labels, crowds) in enumerate(truth):
        x, y = data.scale_factors(np.array([i]))[0]
        for (x1, y1, x2, y2), label, crowd in zip(boxes, labels, crowds):
            box = [x1 / x, y1 / y, (x2 - x1) / x, (y2 - y1) / y]
            own = dict(id=len(annotations) + 1, image_id=data.image_ids[i], category_id=data.category_ids[label])
            annotations.append(own | dict(bbox=box, area=box[2] * box[3], iscrowd=int(crowd)))
    images, categories = ([dict(id=key) for key in ids] for ids in (data.image_ids, data.category_ids))
    values = by_pycocotools(dict(images=images, annotations=annotations, categories=categories, info={}), path)
    assert values == pytest.approx(measured(truth, found).values(), abs=1e-9)
    assert list(tmp_path.rglob("*.tmp")) == []


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    truth, found = random_scenes(4)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        write_coco_results(tmp_path / "file" / "results.json", [batch(truth, found)], Ids())  # type: ignore[arg-type]
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    with pytest.raises(ConfigError, match="not finite"):
        list(coco_results([batch(truth, [([BOX], [0], [float("nan")])] * 5)], Ids()))  # type: ignore[arg-type]


@pytest.mark.skipif(DATA is None, reason="LIMBECK_DATA is not set")
def test_real_bccd_by_its_own_annotations(tmp_path, monkeypatch):
    from limbeck.detection.data.bccd import BCCD

    monkeypatch.setenv("LIMBECK_DATA", str(DATA))
    data, rng = BCCD("test", size=(96, 128), limit=30), np.random.default_rng(0)
    samples = data.__getitems__(range(30))["data_samples"]
    noise = torch.from_numpy(rng.normal(0, 1.0, samples["boxes"].shape)).float()
    one = dict(ids=samples["ids"], boxes=samples["boxes"] + noise, pred=samples["labels"], classes=torch.tensor(3))
    one["scores"] = torch.from_numpy(rng.random(samples["labels"].shape))
    one |= {f"gt_{name}": samples[name] for name in ("boxes", "labels", "crowd")}
    metric = DetectionMetric()
    metric.update([one])
    write_coco_results(tmp_path / "results.json", [one], data)
    truth = json.loads((data.root / "annotations" / "test.json").read_text())
    kept = set(data.image_ids)
    truth["images"] = [image for image in truth["images"] if image["id"] in kept]
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in kept]
    values = metric.values()
    assert by_pycocotools(truth, tmp_path / "results.json") == pytest.approx(values, abs=0.05)  # boxes are float32
    assert 20 < values["mAP"] < 90
