"""Figures of classification: see `limbeck.engine.classification`, which the vision-language models share."""

from limbeck.engine.classification import ClassificationMetric, classification_metrics, per_class_accuracy

__all__ = ["ClassificationMetric", "classification_metrics", "per_class_accuracy"]
