"""Segmentation figures against mmsegmentation's own metric and a count of single pixels."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from limbeck.engine.registry import METRICS
from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.segmentation.metrics import SegmentationMetric, class_iou, confusion_matrix, segmentation_metrics

IGNORE = 255


def sample(
    images: int = 6, classes: int = 5, size: tuple[int, int] = (7, 9), ignored: float = 0.2, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Predictions that are right about half the time, and labels some of which are to be ignored."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, (images, *size))
    pred = np.where(rng.random(labels.shape) < 0.5, labels, rng.integers(0, classes, labels.shape))
    labels[rng.random(labels.shape) < ignored] = IGNORE
    return torch.from_numpy(pred.astype(np.uint8)), torch.from_numpy(labels.astype(np.uint8))


def batch(pred: Tensor, labels: Tensor, classes: int = 5, first: int = 0) -> list[dict[str, Tensor]]:
    ids = torch.arange(first, first + len(pred))
    return [{"pred": pred, "labels": labels, "ids": ids, "classes": torch.tensor(classes)}]


def measured(pred: Tensor, labels: Tensor, classes: int = 5) -> SegmentationMetric:
    metric = METRICS.make({"type": "SegmentationMetric"})
    metric.update(batch(pred, labels, classes))
    return metric


def naive(pred: Tensor, labels: Tensor, classes: int) -> tuple[dict[str, float], list[float]]:
    """One pixel at a time."""
    pixels = [(int(p), int(y)) for p, y in zip(pred.flatten(), labels.flatten()) if int(y) != IGNORE]
    ious, accuracies, per_class = [], [], []
    for k in range(classes):
        both = sum(p == k and y == k for p, y in pixels)
        either = sum(p == k or y == k for p, y in pixels)
        labelled = sum(y == k for _, y in pixels)
        per_class.append(100 * both / either if either else 0.0)
        ious += [100 * both / either] if either else []
        accuracies += [100 * both / labelled] if labelled else []
    right = 100 * sum(p == y for p, y in pixels) / len(pixels)
    return {"mIoU": float(np.mean(ious)), "mAcc": float(np.mean(accuracies)), "aAcc": right}, per_class


# --- against other counts ---


@pytest.mark.parametrize("classes", [2, 5, 19])
@pytest.mark.parametrize("ignored", [0.0, 0.2])
def test_figures_equal_a_count_of_single_pixels(classes, ignored):
    pred, labels = sample(classes=classes, ignored=ignored)
    metric = measured(pred, labels, classes)
    values, per_class = naive(pred, labels, classes)
    assert metric.values() == pytest.approx(values, rel=1e-12)
    assert metric.per_class() == {"IoU": pytest.approx(per_class, rel=1e-12)}


def mmseg_areas(pred: Tensor, labels: Tensor, classes: int) -> list[tuple[Tensor, ...]]:
    """What mmsegmentation keeps of each image, from its own class fed image by image."""
    pytest.importorskip("mmseg")
    from limbeck.engine.mmcv_ops import install

    install()
    from mmseg.evaluation import IoUMetric

    metric = IoUMetric()
    metric.dataset_meta = {"classes": [f"class {k}" for k in range(classes)]}
    samples = [{"pred_sem_seg": {"data": p[None]}, "gt_sem_seg": {"data": y[None]}} for p, y in zip(pred, labels)]
    metric.process({}, samples)
    return metric.results


def mmseg_figures(areas: list[tuple[Tensor, ...]]) -> dict[str, np.ndarray]:
    """Its figures, before it rounds them: IoU and Acc of each class, nan where a class does not occur, and aAcc."""
    from mmseg.evaluation import IoUMetric

    both, either, predicted, labelled = (sum(part) for part in zip(*areas))
    found: Any = IoUMetric.total_area_to_metrics(both, either, predicted, labelled, ["mIoU"])  # type: ignore[arg-type]
    return found


def test_figures_equal_those_of_mmsegmentation(caplog):
    pred, labels = sample(images=8, classes=7, size=(20, 24))
    pred[pred == 6] = 0  # a class that is labelled, never predicted
    labels[labels == 5] = 0  # one that is predicted, never labelled
    areas = mmseg_areas(pred, labels, 7)
    from mmseg.evaluation import IoUMetric

    theirs = mmseg_figures(areas)
    metric = measured(pred, labels, 7)
    values = metric.values()
    assert values["mIoU"] == pytest.approx(100 * np.nanmean(theirs["IoU"]), rel=1e-6)
    assert values["mAcc"] == pytest.approx(100 * np.nanmean(theirs["Acc"]), rel=1e-6)
    assert values["aAcc"] == pytest.approx(100 * float(theirs["aAcc"]), rel=1e-6)
    assert metric.per_class()["IoU"] == pytest.approx((100 * theirs["IoU"]).tolist(), rel=1e-6)
    with caplog.at_level(logging.ERROR):
        ours = IoUMetric()
        ours.dataset_meta = {"classes": list("abcdefg")}
        rounded = ours.compute_metrics(areas)  # what it prints, with two digits
    assert {name: round(value, 2) for name, value in values.items()} == pytest.approx(rounded, abs=0.0051)


def test_a_class_that_does_not_occur_is_left_out_of_the_means_and_0_in_the_list():
    pred, labels = sample(classes=4)
    few, many = measured(pred, labels, 4), measured(pred, labels, 9)
    assert many.values() == few.values()
    assert many.per_class()["IoU"] == [*few.per_class()["IoU"], 0.0, 0.0, 0.0, 0.0, 0.0]
    found = mmseg_figures(mmseg_areas(pred, labels, 9))
    assert np.isnan(found["IoU"][4:]).all()
    assert many.values()["mIoU"] == pytest.approx(100 * np.nanmean(found["IoU"]), rel=1e-6)


def test_perfect_and_hopeless_predictions():
    _, labels = sample(ignored=0.0)
    assert measured(labels, labels).values() == {"mIoU": 100.0, "mAcc": 100.0, "aAcc": 100.0}
    assert measured((labels + 1) % 5, labels).values() == {"mIoU": 0.0, "mAcc": 0.0, "aAcc": 0.0}


def test_counts_are_exact_beyond_float32():
    confusion = torch.tensor([[2**40, 1], [0, 2**40]])
    assert segmentation_metrics(confusion)["aAcc"] == 100.0 * 2**41 / (2**41 + 1) < 100.0
    assert class_iou(confusion) == [100.0 * 2**40 / (2**40 + 1)] * 2


# --- properties ---


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(2, 30), cut=st.integers(1, 5))
def test_neither_batches_nor_their_order_change_a_figure(seed, classes, cut):
    pred, labels = sample(classes=classes, size=(4, 5), seed=seed)
    labels[0, 0, 0] = 0  # at least one pixel counts
    whole, parts = measured(pred, labels, classes), SegmentationMetric()
    parts.update(batch(pred[cut:], labels[cut:], classes, first=cut))
    parts.update(batch(pred[:cut], labels[:cut], classes))
    assert parts.values() == whole.values()
    assert parts.per_class() == whole.per_class()
    assert all(0 <= value <= 100 for value in whole.values().values())
    assert whole.values()["mIoU"] <= whole.values()["mAcc"] + 1e-9  # TP / (TP + FN + FP) against TP / (TP + FN)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_what_is_predicted_on_ignored_pixels_changes_nothing(seed):
    pred, labels = sample(size=(4, 5), seed=seed)
    labels[0, 0, 0] = 0
    other = torch.where(labels == IGNORE, torch.full_like(pred, 200), pred)
    assert torch.equal(confusion_matrix(other, labels, 5), confusion_matrix(pred, labels, 5))
    more = torch.cat([labels, torch.full_like(labels[:2], IGNORE)])
    assert measured(torch.cat([pred, pred[:2]]), more).values() == measured(pred, labels).values()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), order=st.permutations(range(5)))
def test_renaming_the_classes_permutes_the_list_and_keeps_the_means(seed, order):
    pred, labels = sample(size=(4, 5), seed=seed)
    labels[0, 0, 0] = 0
    table = torch.tensor([*order, *range(5, 256)], dtype=torch.uint8)
    plain, renamed = measured(pred, labels), measured(table[pred.long()], table[labels.long()])
    assert renamed.values() == pytest.approx(plain.values(), rel=1e-12)
    assert [renamed.per_class()["IoU"][k] for k in order] == plain.per_class()["IoU"]


# --- samples that come twice, sizes, teachers ---


def test_a_sample_that_comes_twice_counts_once():
    pred, labels = sample()
    metric = measured(pred, labels)
    metric.update(batch(pred[:2].flip(0), labels[:2]))  # the same ids, other predictions
    assert metric.values() == measured(pred, labels).values()
    again = SegmentationMetric()
    twice = batch(torch.cat([pred, pred[:1] * 0]), torch.cat([labels, labels[:1]]))
    twice[0]["ids"][-1] = 0
    again.update(twice)
    assert again.values() == metric.values()


def test_images_may_differ_in_size_and_reset_forgets():
    small, large = sample(images=1, size=(3, 4)), sample(images=1, size=(6, 5), seed=1)
    metric = SegmentationMetric()
    metric.update(batch(*small))
    metric.update(batch(*large, first=1))
    pred, labels = (torch.cat([a.flatten(), b.flatten()]) for a, b in zip(small, large))
    assert metric.values() == pytest.approx(naive(pred, labels, 5)[0], rel=1e-12)
    metric.reset()
    metric.update(batch(*small))
    assert metric.values() == measured(*small).values()


def test_agreement_is_the_share_of_labelled_pixels_with_one_prediction():
    pred, labels = sample()
    teacher, _ = sample(seed=3)
    metric = SegmentationMetric()
    metric.update(batch(pred, labels), batch(teacher, labels))
    equal = [int(a) == int(b) for a, b, y in zip(pred.flatten(), teacher.flatten(), labels.flatten()) if y != IGNORE]
    assert metric.values()["agreement"] == pytest.approx(100 * float(np.mean(equal)), rel=1e-12)
    itself = SegmentationMetric()
    itself.update(batch(pred, labels), batch(pred, labels))
    assert itself.values() == {**measured(pred, labels).values(), "agreement": 100.0}


def test_a_teacher_of_other_classes_or_of_some_batches_gives_no_agreement():
    pred, labels = sample()
    other = SegmentationMetric()
    other.update(batch(pred, labels), batch(pred, labels, classes=7))
    assert other.values() == measured(pred, labels).values()
    some = SegmentationMetric()
    some.update(batch(pred[:3], labels[:3]), batch(pred[:3], labels[:3]))
    some.update(batch(pred[3:], labels[3:], first=3))
    assert some.values() == measured(pred, labels).values()


# --- what is refused ---


def test_nothing_to_count_is_said():
    metric = SegmentationMetric()
    with pytest.raises(ConfigError, match="no predictions"):
        metric.values()
    with pytest.raises(ConfigError, match="no predictions"):
        metric.per_class()
    pred, labels = sample()
    with pytest.raises(ConfigError, match="no labelled pixel"):
        measured(pred, torch.full_like(labels, IGNORE)).values()


@pytest.mark.parametrize(
    ("what", "said"), [("label", "label 5 is not in 0 to 4"), ("pred", "prediction 9 is not in 0 to 4")]
)
def test_labels_and_predictions_beyond_the_classes_are_named(what, said):
    pred, labels = sample(ignored=0.0)
    (labels if what == "label" else pred)[1, 2, 3] = 5 if what == "label" else 9
    with pytest.raises(ShapeMismatch, match=said):
        measured(pred, labels)


def test_other_sizes_and_other_numbers_of_classes_are_refused():
    pred, labels = sample()
    with pytest.raises(ShapeMismatch, match="differ in shape"):
        measured(pred[:, 1:], labels)
    metric = measured(pred, labels)
    with pytest.raises(ShapeMismatch, match="7 classes follows batches of 5"):
        metric.update(batch(pred, labels, classes=7, first=10))
    with pytest.raises(ShapeMismatch, match="teacher"):
        SegmentationMetric().update(batch(pred, labels), batch(pred[:, 1:], labels[:, 1:]))
