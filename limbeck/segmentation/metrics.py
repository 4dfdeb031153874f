"""Figures of semantic segmentation: mean IoU, class and pixel accuracy, agreement with a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from limbeck.engine.losses import IGNORE
from limbeck.engine.registry import METRICS
from limbeck.errors import ConfigError, ShapeMismatch


def confusion_matrix(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Number of pixels by class: rows are labels, columns predictions; pixels labelled 255 are left out.

    Args:
        predicted, labels: integers of one shape, such as (B, H, W); predictions in 0 … classes − 1.
        classes: K ≥ 2.
    Returns: int64 (K, K).
    Raises: ShapeMismatch when the shapes differ, or a label or the prediction of a counted pixel is none of the K.
    """
    if predicted.shape != labels.shape:
        raise ShapeMismatch(
            f"predictions {tuple(predicted.shape)} and labels {tuple(labels.shape)} differ in shape; "
            "bring the logits to the labels' size before their argmax"
        )
    valid = labels != IGNORE
    for what, values in (("label", labels), ("prediction", predicted)):
        wrong = valid & ((values < 0) | (values >= classes))
        if bool(wrong.any()):
            raise ShapeMismatch(f"{what} {int(values[wrong][0])} is not in 0 to {classes - 1}, nor {IGNORE} to ignore")
    return multiclass_confusion_matrix(predicted, labels, classes, ignore_index=IGNORE, validate_args=False)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """Percent, 0 where the whole is 0."""
    return 100.0 * part.double() / whole.clamp(min=1).double()


def class_iou(confusion: Tensor) -> list[float]:
    """Intersection over union of each class in percent: TP / (TP + FP + FN).

    A class that neither labels nor predictions have has no IoU; it is given as 0, since records hold finite numbers.

    Args:
        confusion: (K, K), rows are labels.
    """
    hits = confusion.diagonal()
    return _share(hits, confusion.sum(0) + confusion.sum(1) - hits).tolist()


def segmentation_metrics(confusion: Tensor) -> dict[str, float]:
    """The figures of a confusion matrix, in percent, under mmsegmentation's names.

    Args:
        confusion: (K, K), rows are labels.
    Returns: `mIoU`, the mean of `class_iou` over the classes that labels or predictions have; `mAcc`, the mean over the
        labelled classes of the share of their pixels that is right; `aAcc`, the share of all pixels that is right.
    Raises: ConfigError when no pixel was counted.

    >>> segmentation_metrics(torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))["mIoU"]
    77.5
    """
    hits, labelled = confusion.diagonal(), confusion.sum(1)
    if not int(labelled.sum()):
        raise ConfigError(f"the metric got no labelled pixel; the split is empty, or every label is {IGNORE} (ignore)")
    union = confusion.sum(0) + labelled - hits
    return {
        "mIoU": float(_share(hits, union)[union > 0].mean()),
        "mAcc": float(_share(hits, labelled)[labelled > 0].mean()),
        "aAcc": float(_share(hits.sum(), labelled.sum())),
    }


@METRICS.register_module()
class SegmentationMetric:
    """Adds up one confusion matrix over a split, batch by batch; a sample that comes twice counts once.

    A prediction is one dict a batch: `pred` and `labels` uint8 (B, H, W), 255 in labels for pixels to ignore, `ids`
    (B,), and `classes`, a scalar tensor, the number of classes that the model tells apart. Nothing else is kept, so
    images may be of any size and number. With a teacher of as many classes on the same samples the values have
    `agreement`, the percentage of the labelled pixels where both predict the same class.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget what was added."""
        self.confusion: Tensor | None = None
        self._seen: set[int] = set()
        self._equal = self._compared = 0

    def update(self, predictions: Sequence[dict[str, Any]], teacher: Sequence[dict[str, Any]] | None = None) -> None:
        """Add batches, with the teacher's on the same batches where given; one of other classes agrees on nothing.

        Raises: ShapeMismatch, also for a batch with another number of classes than those before.
        """
        teachers = [None] * len(predictions) if teacher is None else teacher
        for mine, theirs in zip(predictions, teachers, strict=True):
            self._add(mine, theirs)

    def _add(self, mine: dict[str, Any], theirs: dict[str, Any] | None) -> None:
        fresh = self._fresh(mine["ids"])
        predicted, labels, classes = mine["pred"][fresh], mine["labels"][fresh], int(mine["classes"])
        found = confusion_matrix(predicted, labels, classes)
        if self.confusion is None:
            self.confusion = torch.zeros_like(found)
        if self.confusion.shape != found.shape:
            raise ShapeMismatch(f"a batch of {classes} classes follows batches of {len(self.confusion)}; reset between")
        self.confusion += found
        if theirs is not None and int(theirs["classes"]) == classes:
            other = theirs["pred"][fresh]
            if other.shape != predicted.shape:
                raise ShapeMismatch(
                    f"the teacher's predictions {tuple(other.shape)} and {tuple(predicted.shape)} differ in shape"
                )
            valid = labels != IGNORE
            self._equal += int((valid & (predicted == other)).sum())
            self._compared += int(valid.sum())

    def _fresh(self, ids: Tensor) -> Tensor:
        """Which samples (B,) are here for the first time; distributed samplers repeat some to fill up."""
        fresh = []
        for sample in ids.tolist():
            fresh.append(sample not in self._seen)
            self._seen.add(sample)
        return torch.tensor(fresh, dtype=torch.bool, device=ids.device)

    def values(self) -> dict[str, float]:
        """`mIoU`, `mAcc`, `aAcc` and, with a teacher in every batch, `agreement`, over everything since `reset`.

        Raises: ConfigError when there was nothing.
        """
        confusion = self._counted()
        found = segmentation_metrics(confusion)
        if self._compared == int(confusion.sum()):
            found["agreement"] = 100.0 * self._equal / self._compared
        return found

    def per_class(self) -> dict[str, list[float]]:
        """`IoU` of each class in percent, in the order of labels; see `class_iou` for classes that do not occur."""
        return {"IoU": class_iou(self._counted())}

    def _counted(self) -> Tensor:
        if self.confusion is None:
            raise ConfigError("the metric got no predictions; the split is empty or its loader gave no batch")
        return self.confusion
