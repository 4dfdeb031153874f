"""Classification figures against numpy."""

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator

from limbeck.engine.registry import METRICS
from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.vision.metrics import ClassificationMetric, classification_metrics, per_class_accuracy


def naive(logits: np.ndarray, labels: np.ndarray, bins: int) -> dict[str, float]:
    right, nll = [], []
    sums = [[0, 0.0, 0.0] for _ in range(bins)]
    for z, y in zip(logits.astype(np.float64), labels):
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        k = int(p.argmax())
        right.append(k == y)
        nll.append(-np.log(p[y]))
        b = min(int(p[k] * bins), bins - 1)
        sums[b][0] += 1
        sums[b][1] += p[k]
        sums[b][2] += k == y
    ece = sum(abs(conf - hits) for n, conf, hits in sums if n) / len(labels)
    return {"top1": 100 * float(np.mean(right)), "nll": float(np.mean(nll)), "ece": float(ece)}


def sample(count: int = 500, classes: int = 7, scale: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = scale * torch.randn(count, classes, generator=generator)
    return logits, torch.randint(classes, (count,), generator=generator)


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("scale", [0.3, 2.0, 9.0])
def test_figures_equal_numpy(bins, scale):
    logits, labels = sample(scale=scale)
    found = classification_metrics(logits, labels, num_bins=bins)
    assert found == pytest.approx(naive(logits.numpy(), labels.numpy(), bins), rel=1e-6, abs=1e-6)
    assert 0 <= found["ece"] <= 1


def test_perfect_predictions():
    labels = torch.arange(5)
    found = classification_metrics(100 * torch.eye(5), labels)
    assert found == pytest.approx({"top1": 100.0, "nll": 0.0, "ece": 0.0}, abs=1e-9)


# --- expected calibration error ---


def with_confidence(confidence: np.ndarray, right: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Two-class logits whose first class, always the predicted one, has these probabilities (> 0.5)."""
    p = torch.from_numpy(confidence).double()
    logits = torch.stack([p.log(), (1 - p).log()], dim=1)
    return logits, torch.from_numpy(np.where(right, 0, 1))


def ece(logits: torch.Tensor, labels: torch.Tensor, **options: int) -> float:
    return classification_metrics(logits, labels, **options)["ece"]


def test_ece_has_fifteen_bins_of_equal_width_unless_asked():
    # Bin 13 of 15 is [0.8, 0.8667). Both pairs cancel inside one bin and not across two.
    right = np.array([True, False])
    inside, across = np.array([0.81, 0.86]), np.array([0.86, 0.88])
    assert ece(*with_confidence(inside, right)) == pytest.approx(abs(1 - 0.81 - 0.86) / 2)
    assert ece(*with_confidence(across, right)) == pytest.approx((1 - 0.86 + 0.88) / 2)
    assert ece(*with_confidence(across, right), num_bins=10) == pytest.approx(abs(1 - 0.86 - 0.88) / 2)
    # Equally filled bins would split the first pair; equally wide ones do not care how full they are.
    many = np.concatenate([inside] * 50 + [np.array([0.99])])
    assert ece(*with_confidence(many, np.array([True, False] * 50 + [True]))) == pytest.approx(
        (50 * abs(1 - 0.81 - 0.86) + 0.01) / 101
    )


def test_ece_of_calibrated_predictions_is_nearly_zero():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1.0, 100_000)
    right = rng.uniform(size=100_000) < confidence
    assert ece(*with_confidence(confidence, right)) < 0.01
    over = 0.5 + (confidence - 0.5) ** 0.25 / 2**0.75  # surer than right
    assert ece(*with_confidence(over, right)) > 0.1


@pytest.mark.parametrize(("share", "expected"), [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)])
def test_ece_of_certain_predictions_is_their_share_of_errors(share, expected):
    labels = (torch.arange(100) >= 100 * share).long()
    certain = torch.tensor([[1000.0, 0.0, 0.0]]).repeat(100, 1)
    assert ece(certain, labels) == pytest.approx(expected, abs=1e-6)


def test_ece_of_a_constant_guess_is_its_distance_from_the_hit_rate():
    logits = torch.tensor([[2.0, 1.0, 0.0]]).repeat(40, 1)
    labels = torch.tensor([0] * 30 + [1] * 10)
    assert ece(logits, labels) == pytest.approx(abs(0.75 - float(logits[0].softmax(0)[0])), abs=1e-6)


def test_ece_sees_neither_shift_nor_order():
    logits, labels = sample()
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    expected = ece(logits, labels)
    assert ece(logits[order], labels[order]) == pytest.approx(expected, abs=1e-6)
    assert ece(logits + torch.linspace(-9, 9, 500).unsqueeze(1), labels) == pytest.approx(expected, abs=1e-6)
    assert ece(logits.repeat(3, 1), labels.repeat(3)) == pytest.approx(expected, abs=1e-6)
    assert ece(3 * logits, labels) != pytest.approx(expected, abs=1e-2)


def test_agreement_is_the_share_of_equal_predictions():
    logits, labels = sample()
    teacher = logits.clone()
    teacher[:125] = -teacher[:125]
    found = classification_metrics(logits, labels, teacher)["agreement"]
    assert found == pytest.approx(100 * float((logits.argmax(1) == teacher.argmax(1)).double().mean()))
    assert found == 75.0
    assert "agreement" not in classification_metrics(logits, labels)


def test_per_class_accuracy_equals_a_loop_and_is_zero_without_samples():
    logits, labels = sample()
    labels[labels == 6] = 0
    predicted = logits.argmax(1)
    expected = [
        100 * float((predicted[labels == c] == c).double().mean()) if (labels == c).any() else 0 for c in range(7)
    ]
    assert per_class_accuracy(logits, labels) == pytest.approx(expected)


@pytest.mark.parametrize(("logits", "labels"), [((4, 3), (5,)), ((4,), (4,)), ((0, 3), (0,))])
def test_wrong_shapes_are_named(logits, labels):
    with pytest.raises(ShapeMismatch, match="got"):
        classification_metrics(torch.zeros(logits), torch.zeros(labels, dtype=torch.int64))


def test_teacher_of_another_shape_is_refused():
    logits, labels = sample()
    with pytest.raises(ShapeMismatch, match="teacher"):
        classification_metrics(logits, labels, logits[:, :3])


def batches(logits, labels, ids, size=64):
    parts = zip(logits.split(size), labels.split(size), ids.split(size))
    return [{"logits": z, "labels": y, "ids": i} for z, y, i in parts]


def test_stateful_metric_equals_the_functions_and_resets():
    logits, labels = sample()
    metric = METRICS.make({"type": "ClassificationMetric"})
    for batch in batches(logits, labels, torch.arange(500)):
        metric.update([batch], [{"logits": -batch["logits"]}])
    assert metric.values() == pytest.approx(classification_metrics(logits, labels, -logits))
    assert metric.compute() == metric.values()
    assert metric.per_class() == {"top1": per_class_accuracy(logits, labels)}
    metric.reset()
    with pytest.raises(ConfigError, match="no predictions"):
        metric.values()


def test_samples_that_come_twice_count_once():
    logits, labels = sample(100)
    order = torch.cat([torch.randperm(100, generator=torch.Generator().manual_seed(0)), torch.arange(28)])
    metric = ClassificationMetric()
    metric.update(batches(logits[order], labels[order], order, 32))
    assert metric.values() == pytest.approx(classification_metrics(logits, labels))


def test_mmengine_evaluator_takes_the_metric():
    logits, labels = sample(100)
    evaluator = Evaluator([ClassificationMetric()])
    for batch in batches(logits, labels, torch.arange(100)):
        evaluator.process([batch], None)
    assert evaluator.evaluate(100) == pytest.approx(classification_metrics(logits, labels))


def test_num_bins_must_be_positive():
    with pytest.raises(ConfigError, match="num_bins"):
        ClassificationMetric(num_bins=0)
