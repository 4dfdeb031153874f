"""The task adapter of image classification: cross entropy, logits."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import nn

from limbeck.engine.adapter import Batch, Forward
from limbeck.engine.classification_adapter import ClassificationAdapter, are_classes
from limbeck.engine.registry import ADAPTERS
from limbeck.errors import ConfigError


@ADAPTERS.register_module()
class VisionAdapter(ClassificationAdapter):
    """Classifiers that take (B, C, H, W) and return logits (B, classes).

    Args:
        label_smoothing: of the task's cross entropy, in [0, 1).
    """

    offers = ("logits",)

    def forward(self, model: nn.Module, inputs: Any, batch: Batch, *, with_loss: bool) -> Forward:
        """Offers `logits` (B, classes); the loss is `loss_ce`."""
        logits = model(inputs)
        losses = {}
        if with_loss:
            losses["loss_ce"] = F.cross_entropy(logits, batch.targets, label_smoothing=self.label_smoothing)
        return Forward(losses=losses, offers={"logits": logits})

    def check_data(self, deploy: nn.Module, dataset: Any) -> None:
        """Raises: ConfigError when the model has fewer classes than the data set, or a label is none of the classes."""
        super().check_data(deploy, dataset)
        labels, classes = dataset.labels, len(dataset.classes)
        if len(labels) and not are_classes(labels, classes):
            raise ConfigError(
                f"data set {dataset.name} has labels from {labels.min()} to {labels.max()}, "
                f"but names {classes} classes; labels are class indices from 0"
            )
