"""Figures of object detection: COCO's average precision, by pycocotools; and its file of results."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from limbeck.engine.registry import METRICS, require
from limbeck.engine.weights import write_json
from limbeck.errors import ConfigError, ShapeMismatch

if TYPE_CHECKING:
    from limbeck.detection.data.base import DetectionDataset

MOST_DETECTIONS = 100  # of a class in an image, as COCO counts
SIZES = {"APs": (0.0, 32.0**2), "APm": (32.0**2, 96.0**2), "APl": (96.0**2, 1e10)}  # area in pixels
EVERY_SIZE = (0.0, 1e10)


@dataclass(frozen=True, slots=True)
class Boxes:
    """The boxes of an image: float64 (N, 4), x1 y1 x2 y2; labels int64 (N,); scores or crowd flags float64 (N,)."""

    boxes: np.ndarray
    labels: np.ndarray
    values: np.ndarray


def average_precision(
    truth: Sequence[Boxes], found: Sequence[Boxes], classes: int, sizes: Sequence[tuple[float, float]] = (EVERY_SIZE,)
) -> np.ndarray:
    """COCO's AP by IoU threshold, class and size of object, each the mean precision at 101 levels of recall.

    Args:
        truth: the objects of each image; `values` are 1 for crowds, which are ignored.
        found: the detections of the same images; `values` are scores. Of each class the best 100 an image count.
        classes: K; labels are 0 … K − 1.
        sizes: smallest and largest area in pixels of the boxes that count.
    Returns: float64 (10, K, len(sizes)), shares from 0 to 1; NaN where no object is of that class and size.
    """
    evaluator = require("pycocotools.cocoeval", "DetectionMetric", "detection")
    with redirect_stdout(io.StringIO()):  # pycocotools prints at every step
        run = evaluator.COCOeval(_coco(truth, classes, "iscrowd"), _coco(found, classes, "score"), "bbox")
        run.params.maxDets = [MOST_DETECTIONS]
        run.params.areaRng = [list(size) for size in sizes]
        run.params.areaRngLbl = [str(size) for size in sizes]
        run.evaluate()
        run.accumulate()
    precision = run.eval["precision"][..., 0]  # (thresholds, recalls, classes, sizes), −1 without objects
    return np.where(precision < 0, np.nan, precision).mean(1)


def _coco(images: Sequence[Boxes], classes: int, value: str) -> Any:
    """pycocotools' view of boxes; image ids are their indices, category ids are labels."""
    found = require("pycocotools.coco", "DetectionMetric", "detection").COCO()
    annotations: list[dict[str, Any]] = []
    for index, image in enumerate(images):
        sides = image.boxes[:, 2:] - image.boxes[:, :2]
        rows = np.concatenate((image.boxes[:, :2], sides), 1).tolist()
        for box, label, number in zip(rows, image.labels.tolist(), image.values.tolist()):
            one = dict(id=len(annotations) + 1, image_id=index, category_id=label, bbox=box, area=box[2] * box[3])
            annotations.append(one | {"iscrowd": 0, value: number if value == "score" else int(number)})
    categories = [dict(id=label, name=str(label)) for label in range(classes)]
    found.dataset = dict(
        images=[dict(id=n) for n in range(len(images))], annotations=annotations, categories=categories
    )
    found.createIndex()
    return found


@METRICS.register_module()
class DetectionMetric:
    """Keeps the boxes of a split and has pycocotools compare them; a sample that comes twice counts once.

    A prediction is one dict a batch, of tensors on the CPU: `boxes` (B, P, 4), x1 y1 x2 y2 in pixels of the input,
    `scores` (B, P), `pred` (B, P), class or −1 for padding, `ids` (B,); the ground truth `gt_boxes` (B, M, 4),
    `gt_labels` (B, M) with −1 for padding and, where there are crowds, `gt_crowd` (B, M); and `classes`, a scalar, the
    number of classes (without it as many as labels and predictions name). IoU does not depend on the scale, so figures
    in pixels of the input are those in pixels of the file, but for the sizes of `by_size`.
    There is no agreement with a teacher: it would hang on a threshold of scores that no paper fixes.

    Args:
        by_size: give `APs`, `APm` and `APl` too, of objects under 32², up to 96² and over 96² pixels of box area.
    """

    reads_teacher: ClassVar[bool] = False

    def __init__(self, by_size: bool = False) -> None:
        self.by_size = by_size
        self.reset()

    def reset(self) -> None:
        """Forget what was added."""
        self._truth: dict[int, Boxes] = {}
        self._found: dict[int, Boxes] = {}
        self._classes = 0
        self._precision: np.ndarray | None = None

    def update(self, predictions: Sequence[dict[str, Any]], teacher: Sequence[dict[str, Any]] | None = None) -> None:
        """Add batches; the teacher's are not looked at.

        Raises: ShapeMismatch, also for labels that are no class; ConfigError without ground truth, or where a box or
            score is not finite.
        """
        self._precision = None
        for batch in predictions:
            check_prediction(batch)
            if "gt_boxes" not in batch or "gt_labels" not in batch:
                raise ConfigError("predictions have no gt_boxes and gt_labels; the metric needs a split with boxes")
            self._classes = max(self._classes, _class_count(batch))
            crowd = batch.get("gt_crowd", torch.zeros_like(batch["gt_labels"]))
            for row, sample in enumerate(batch["ids"].tolist()):
                if sample not in self._truth:
                    self._truth[sample] = _rows(batch["gt_boxes"][row], batch["gt_labels"][row], crowd[row])
                    self._found[sample] = _rows(batch["boxes"][row], batch["pred"][row], batch["scores"][row])

    def values(self) -> dict[str, float]:
        """`mAP` at IoU 0.50:0.95, `AP50`, `AP75`, in percent: means over the classes that the ground truth has.

        With `by_size` also `APs`, `APm`, `APl`; 0 where no object is of that size.

        Raises: ConfigError when there was nothing, or no object at all.
        """
        precision = self._measured()
        found = {"mAP": precision[..., 0], "AP50": precision[0, :, 0], "AP75": precision[5, :, 0]}
        found |= {name: precision[..., n + 1] for n, name in enumerate(SIZES)} if self.by_size else {}
        return {name: _percent(part) for name, part in found.items()}

    def per_class(self) -> dict[str, list[float]]:
        """`AP` of each class in percent, in the order of labels; 0 for one that the ground truth does not have."""
        return {"AP": [_percent(row) for row in self._measured()[..., 0].T]}

    def _measured(self) -> np.ndarray:
        if not self._truth:
            raise ConfigError("the metric got no predictions; the split is empty or its loader gave no batch")
        if self._precision is None:
            if not any((one.values == 0).any() for one in self._truth.values()):
                raise ConfigError("no image of the split has an object; average precision is not defined without any")
            ids = sorted(self._truth)
            truth, found = ([kept[sample] for sample in ids] for kept in (self._truth, self._found))
            sizes = [EVERY_SIZE, *(SIZES.values() if self.by_size else ())]
            self._precision = average_precision(truth, found, self._classes, sizes)
        return self._precision


def _percent(precision: np.ndarray) -> float:
    """Mean over what is defined; 0 where nothing is, since records hold finite numbers."""
    known = precision[~np.isnan(precision)]
    return 100.0 * float(known.mean()) if known.size else 0.0


def _rows(boxes: Tensor, labels: Tensor, values: Tensor) -> Boxes:
    """Those of an image that are no padding."""
    real = labels >= 0
    return Boxes(boxes[real].double().numpy(), labels[real].numpy(), values[real].double().numpy())


def _class_count(batch: dict[str, Any]) -> int:
    """Raises: ShapeMismatch where a class is none of those that the batch says."""
    named = 1 + max((int(batch[key].max()) for key in ("pred", "gt_labels") if batch[key].numel()), default=-1)
    if "classes" not in batch:
        return named
    if named > int(batch["classes"]):
        raise ShapeMismatch(
            f"class {named - 1} is not in 0 to {int(batch['classes']) - 1}; build the model for the data"
        )
    return int(batch["classes"])


def check_prediction(batch: dict[str, Any]) -> None:
    """Raises: ShapeMismatch unless boxes, scores and classes fit; ConfigError where a box or score is not finite."""
    count = len(batch["ids"])
    groups = [("boxes", "pred", "scores"), ("gt_boxes", "gt_labels", "gt_crowd")]
    for boxes, *others in groups:
        if boxes not in batch:
            continue
        shape = tuple(batch[boxes].shape)
        if len(shape) != 3 or shape[0] != count or shape[2] != 4:
            raise ShapeMismatch(f"{boxes} {shape} are not (B, N, 4) of the {count} samples")
        for name in others:
            if name in batch and tuple(batch[name].shape) != shape[:2]:
                raise ShapeMismatch(f"{name} {tuple(batch[name].shape)} do not fit {boxes} {shape}; one a box would")
    real = batch["pred"] >= 0
    wrong = ~(batch["boxes"].isfinite().all(2) & batch["scores"].isfinite()) & real
    if bool(wrong.any()):
        sample = int(batch["ids"][wrong.any(1)][0])
        raise ConfigError(f"a predicted box or score of sample {sample} is not finite; the model's weights may be")


def coco_results(predictions: Sequence[dict[str, Any]], dataset: DetectionDataset) -> Iterator[dict[str, Any]]:
    """Detections as COCO's results have them: image_id, category_id, bbox x y width height in the file's pixels, score.

    Args:
        predictions: of `dataset` without augmentation; of a sample that comes twice the first is taken.
        dataset: knows its ids and by what it has scaled each image.
    Raises: ConfigError, ShapeMismatch.
    """
    seen: set[int] = set()
    for batch in predictions:
        check_prediction(batch)
        factors = dataset.scale_factors(batch["ids"].numpy())
        for row, sample in enumerate(batch["ids"].tolist()):
            if sample in seen:
                continue
            seen.add(sample)
            found = _rows(batch["boxes"][row], batch["pred"][row], batch["scores"][row])
            corners = found.boxes / np.tile(factors[row], 2)
            boxes = np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), 1)
            for box, label, score in zip(boxes.tolist(), found.labels.tolist(), found.values.tolist()):
                category = dataset.category_ids[label]
                yield dict(image_id=dataset.image_ids[sample], category_id=category, bbox=box, score=score)


def write_coco_results(path: str | Path, predictions: Sequence[dict[str, Any]], dataset: DetectionDataset) -> None:
    """Write `coco_results` as JSON for pycocotools' `loadRes` or an evaluation server, whole or not at all.

    Raises: OutputError; ConfigError, ShapeMismatch.
    """
    write_json(path, list(coco_results(predictions, dataset)))
