"""The base of the adapters of image classification: labels as targets, logits as predictions."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from limbeck.engine.adapter import Batch, class_mismatch
from limbeck.engine.cost import evaluating
from limbeck.engine.pixels import PixelAdapter, input_of
from limbeck.errors import ConfigError


class ClassificationAdapter(PixelAdapter):
    """Classifiers that take (B, C, H, W) and return logits (B, classes); subclasses implement `forward`.

    Args:
        label_smoothing: of the task's cross entropy, in [0, 1).

    Attributes:
        example_labels: of the two black images of `example`.
    """

    example_labels: ClassVar[tuple[int, int]] = (0, 0)

    def __init__(self, label_smoothing: float = 0.0) -> None:
        if not 0.0 <= label_smoothing < 1.0:
            raise ConfigError(f"label_smoothing is in [0, 1); got {label_smoothing}")
        super().__init__()
        self.label_smoothing = label_smoothing

    def batch(self, inputs: Any, data_samples: Any) -> Batch:
        """Targets are the labels (B,)."""
        samples = data_samples or {}
        return Batch(inputs, targets=samples.get("labels"), ids=samples.get("ids"), views=samples.get("views"))

    def predict(self, model: nn.Module, inputs: Any, batch: Batch) -> list[dict[str, Tensor]]:
        """One dict for the batch: logits (B, classes), and labels and ids (B,) where known; on the CPU."""
        return self.prediction(batch, logits=model(inputs).float())

    def prediction(self, batch: Batch, **found: Tensor) -> list[dict[str, Tensor]]:
        """What `predict` gives: these tensors of a batch, with its labels and ids where known; on the CPU."""
        values = {**found, "labels": batch.targets, "ids": batch.ids}
        return [{name: value.detach().cpu() for name, value in values.items() if value is not None}]

    def example(self, deploy: nn.Module) -> Batch:
        """Two black images with `example_labels`."""
        _, size = input_of(deploy)
        device = next(deploy.parameters()).device
        labels, ids = torch.tensor(self.example_labels, device=device), torch.arange(2, device=device)
        return Batch(torch.zeros(2, *size, device=device), targets=labels, ids=ids, views=torch.zeros_like(ids))

    def check_data(self, deploy: nn.Module, dataset: Any) -> None:
        """Raises: ConfigError when the model has fewer classes than the data set."""
        with evaluating(deploy), torch.no_grad():
            found = deploy(self.example(deploy).inputs).shape[1]
        if found < len(dataset.classes):
            raise class_mismatch(deploy, dataset, found)


def are_classes(labels: Any, classes: int) -> bool:
    """Whether all labels (N,), of which there is one at least, are in 0 … classes − 1."""
    return 0 <= int(labels.min()) <= int(labels.max()) < classes
