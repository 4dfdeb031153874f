"""The task adapter of image classification: cross entropy, logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.adapter import Batch, Forward, class_mismatch
from limbeck.engine.cost import evaluating
from limbeck.engine.pixels import PixelAdapter, input_of
from limbeck.engine.registry import ADAPTERS
from limbeck.errors import ConfigError


@ADAPTERS.register_module()
class VisionAdapter(PixelAdapter):
    """Classifiers that take (B, C, H, W) and return logits (B, classes).

    Args:
        label_smoothing: of the task's cross entropy, in [0, 1).
    """

    offers = ("logits",)

    def __init__(self, label_smoothing: float = 0.0) -> None:
        if not 0.0 <= label_smoothing < 1.0:
            raise ConfigError(f"label_smoothing is in [0, 1); got {label_smoothing}")
        super().__init__()
        self.label_smoothing = label_smoothing

    def batch(self, inputs: Any, data_samples: Any) -> Batch:
        """Targets are the labels (B,)."""
        samples = data_samples or {}
        return Batch(inputs, targets=samples.get("labels"), ids=samples.get("ids"), views=samples.get("views"))

    def forward(self, model: nn.Module, inputs: Any, batch: Batch, *, with_loss: bool) -> Forward:
        """Offers `logits` (B, classes); the loss is `loss_ce`."""
        logits = model(inputs)
        losses = {}
        if with_loss:
            losses["loss_ce"] = F.cross_entropy(logits, batch.targets, label_smoothing=self.label_smoothing)
        return Forward(losses=losses, offers={"logits": logits})

    def predict(self, model: nn.Module, inputs: Any, batch: Batch) -> list[dict[str, Tensor]]:
        """One dict for the batch: logits (B, classes), and labels and ids (B,) where known; on the CPU."""
        found = {"logits": model(inputs).float(), "labels": batch.targets, "ids": batch.ids}
        return [{name: value.detach().cpu() for name, value in found.items() if value is not None}]

    def example(self, deploy: nn.Module) -> Batch:
        """Two black images with label 0."""
        _, size = input_of(deploy)
        device = next(deploy.parameters()).device
        zeros = torch.zeros(2, dtype=torch.int64, device=device)
        return Batch(
            torch.zeros(2, *size, device=device), targets=zeros, ids=torch.arange(2, device=device), views=zeros
        )

    def check_data(self, deploy: nn.Module, dataset: Any) -> None:
        """Raises: ConfigError when the model has fewer classes than the data set, or a label is none of the classes."""
        with evaluating(deploy), torch.no_grad():
            found = deploy(self.example(deploy).inputs).shape[1]
        classes = len(dataset.classes)
        if found < classes:
            raise class_mismatch(deploy, dataset, found)
        labels = dataset.labels
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ConfigError(
                f"data set {dataset.name} has labels from {labels.min()} to {labels.max()}, "
                f"but names {classes} classes; labels are class indices from 0"
            )
