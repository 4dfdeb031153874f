"""Figures of classification: top-1, negative log-likelihood, calibration error, agreement with a teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from mmengine.evaluator import BaseMetric
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from limbeck.engine.registry import METRICS
from limbeck.errors import ConfigError, ShapeMismatch


def _check(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ShapeMismatch(
            "classification metrics take logits (N, C) and labels (N,); "
            f"got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )


def classification_metrics(
    logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None, num_bins: int = 15
) -> dict[str, float]:
    """The figures of one model on N samples.

    Args:
        logits: (N, C). labels: (N,), class indices.
        teacher_logits: (N, C) on the same samples.
        num_bins: of the calibration error, equally wide.
    Returns: `top1` in percent; `nll` in nats; `ece`, expected calibration error, a fraction in [0, 1]; with a teacher
        `agreement`, the percentage of samples where both predict the same class.
    Raises: ShapeMismatch.
    """
    _check(logits, labels)
    logits = logits.double()
    classes = logits.shape[1]
    values = {
        "top1": 100.0 * (logits.argmax(1) == labels).double().mean(),  # torchmetrics would round to float32
        "nll": F.cross_entropy(logits, labels),
        "ece": multiclass_calibration_error(logits.softmax(1), labels, classes, n_bins=num_bins, norm="l1"),
    }
    if teacher_logits is not None:
        if teacher_logits.shape != logits.shape:
            raise ShapeMismatch(
                f"teacher logits {tuple(teacher_logits.shape)} and logits {tuple(logits.shape)} differ in shape"
            )
        values["agreement"] = 100.0 * (logits.argmax(1) == teacher_logits.argmax(1)).double().mean()
    return {name: float(value) for name, value in values.items()}


def per_class_accuracy(logits: Tensor, labels: Tensor) -> list[float]:
    """Percent of each class's samples that are predicted right; 0 for a class without samples.

    Args:
        logits: (N, C). labels: (N,), class indices.
    Raises: ShapeMismatch.
    """
    _check(logits, labels)
    found = multiclass_accuracy(logits, labels, logits.shape[1], average="none", validate_args=False)
    return [100.0 * float(value) for value in found]


@METRICS.register_module()
class ClassificationMetric(BaseMetric):
    """Gathers predictions batch by batch and calls `classification_metrics`; a sample that comes twice counts once.

    A prediction is one dict a batch: logits (B, C), labels (B,), ids (B,) and, where there is a teacher,
    teacher_logits (B, C). Works alone (`update`, `values`, `reset`) and in mmengine's loops (`process`, `evaluate`).

    Args:
        num_bins: of the calibration error.
    """

    default_prefix = ""  # None would make mmengine warn at every construction
    keys: ClassVar[tuple[str, ...]] = ("logits", "labels", "ids", "teacher_logits")  # of a prediction, that are read

    def __init__(self, num_bins: int = 15, collect_device: str = "cpu", prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if num_bins < 1:
            raise ConfigError(f"num_bins is at least 1; got {num_bins}")
        self.num_bins = num_bins

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """mmengine's entry; the data batch is not looked at."""
        self.update(data_samples)

    def update(self, predictions: Sequence[dict[str, Any]], teacher: Sequence[dict[str, Any]] | None = None) -> None:
        """Add batches, with the teacher's on the same batches where given; one of other classes agrees on nothing."""
        if teacher is None or any(p["logits"].shape != t["logits"].shape for p, t in zip(predictions, teacher)):
            self.results.extend(predictions)
        else:
            self.results.extend(p | {"teacher_logits": t["logits"]} for p, t in zip(predictions, teacher, strict=True))

    def values(self) -> dict[str, float]:
        """The figures over everything added since `reset`."""
        return self.compute_metrics(self.results)

    def compute(self) -> dict[str, float]:
        """The same as `values`."""
        return self.values()

    def per_class(self) -> dict[str, list[float]]:
        """`top1` of each class in percent, in the order of labels."""
        merged = self.merged(self.results)
        return {"top1": per_class_accuracy(merged["logits"], merged["labels"])}

    def reset(self) -> None:
        """Forget what was added."""
        self.results.clear()

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """mmengine's hook: the figures of gathered batches."""
        return self.figures(self.merged(results))

    def figures(self, merged: Mapping[str, Tensor]) -> dict[str, float]:
        """The figures of whole tensors by name."""
        return classification_metrics(
            merged["logits"], merged["labels"], merged.get("teacher_logits"), num_bins=self.num_bins
        )

    def merged(self, results: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Gathered batches as whole tensors, by the names of `keys` that all of them have."""
        return _merge(results, self.keys)


def _merge(results: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Tensor]:
    """Batches to whole tensors; distributed samplers pad with repeated samples, of which the first is kept."""
    if not results:
        raise ConfigError("the metric got no predictions; the split is empty or its loader gave no batch")
    keys = [k for k in names if all(k in r for r in results)]
    merged = {k: torch.cat([r[k] for r in results]) for k in keys}
    if "ids" in merged:
        _, inverse = torch.unique(merged["ids"], return_inverse=True)
        count = len(inverse)
        first = torch.full((int(inverse.max()) + 1,), count).scatter_reduce(0, inverse, torch.arange(count), "amin")
        if len(first) < count:
            keep = first.sort().values
            merged = {k: v[keep] for k, v in merged.items()}
    return merged
