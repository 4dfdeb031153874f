"""Task adapters: how a task's models turn a batch into losses, logits, predictions and targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from limbeck.errors import ConfigError


@dataclass(slots=True)
class Batch:
    """A preprocessed batch: the network input of the deployed member, the targets, and which samples these are."""

    inputs: Any
    targets: Any = None
    ids: Tensor | None = None
    views: Tensor | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def rows(self, which: Tensor) -> Batch | None:
        """The samples of a mask (B,) alone; None where parts of the batch are no tensors, and so cannot be divided."""
        parts = (self.inputs, self.targets, self.ids, self.views)
        if self.extra or not all(part is None or isinstance(part, Tensor) for part in parts):
            return None
        inputs, targets, ids, views = (None if part is None else part[which.to(part.device)] for part in parts)
        return Batch(inputs, targets, ids, views)


@dataclass(slots=True)
class Forward:
    """One member's forward: task loss terms (trained members only) and the tensors offered as taps by name.

    An offer may be a function without arguments, called only when a link taps it.
    """

    losses: dict[str, Tensor] = field(default_factory=dict)
    offers: dict[str, Any] = field(default_factory=dict)


def once(compute: Callable[[], Any], device: str) -> Callable[[], Any]:
    """`compute` for later, in the precision that is asked for now, and once for all the taps that ask."""
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    @cache
    def later() -> Any:
        with torch.autocast(device, dtype=dtype, enabled=enabled):
            return compute()

    return later


def class_mismatch(deploy: nn.Module, dataset: Any, found: int) -> ConfigError:
    """The error for a model with another number of classes, `found`, than the data set."""
    classes = len(dataset.classes)
    return ConfigError(
        f"{type(deploy).__name__} has {found} classes and data set {dataset.name} has {classes}; "
        f"build it with num_classes={classes}"
    )


@dataclass(frozen=True, eq=False)
class FitData:
    """What `TaskAdapter.fit` may read, and nothing else of the data.

    train: the training split as it is augmented. plain: the same without augmentation. val: the validation split.
    seed: of the run. report: called with a stage, what is done and how much there is.
    """

    train: Any
    plain: Any
    val: Any
    seed: int = 0
    report: Callable[[str, int, int], None] | None = None


class Metric(Protocol):
    """A task's metric, fed with predictions; registered by name in METRICS.

    One that never looks at a teacher's predictions says so by a class attribute, `reads_teacher = False`: they are not
    saved with the student's then.
    """

    def reset(self) -> None:
        """Forget everything."""

    def update(self, predictions: list[Any], teacher: list[Any] | None = None) -> None:
        """Take a batch's predictions, and the teacher's on the same batch where agreement is asked for."""

    def values(self) -> dict[str, float]:
        """Standard name → value over everything seen since the reset."""
        ...

    def per_class(self) -> dict[str, list[float]]:
        """Metric → one value a class, in the data set's order; empty where the task has none."""
        ...


class TaskAdapter(ABC):
    """Teaches the engine one task. Stateless but for its options; one instance serves every member."""

    offers: tuple[str, ...] = ("logits",)

    @abstractmethod
    def preprocessor(self, deploy: nn.Module) -> nn.Module:
        """The mmengine data preprocessor that turns a loader's batch into `dict(inputs=…, data_samples=…)`."""

    @abstractmethod
    def batch(self, inputs: Any, data_samples: Any) -> Batch:
        """Name the parts of a preprocessed batch."""

    @abstractmethod
    def member_inputs(self, batch: Batch, deploy: nn.Module, member: nn.Module) -> Any:
        """The batch as `member` wants it: converted from the deployed member's normalisation to its own."""

    @abstractmethod
    def forward(self, model: nn.Module, inputs: Any, batch: Batch, *, with_loss: bool) -> Forward:
        """Run a member once; with its task losses where asked."""

    @abstractmethod
    def predict(self, model: nn.Module, inputs: Any, batch: Batch) -> list[Any]:
        """Per-sample predictions, as the task's metric takes them; fresh objects, never the batch's own samples.

        OpenMMLab's models write into the samples that they are given, and the teacher predicts on the same batch.
        """

    @abstractmethod
    def example(self, deploy: nn.Module) -> Batch:
        """A tiny batch of the right shape, to find tap shapes without data."""

    def check_data(self, deploy: nn.Module, dataset: Any) -> None:  # noqa: B027 - not every task has what to check
        """Say before the first step when the deployed member cannot be trained on a data set. Raises: ConfigError."""

    def check_teacher(self, teacher: nn.Module, dataset: Any) -> None:  # noqa: B027
        """Say before the first step when a frozen member must not teach on a training set. Raises: ConfigError."""

    def fits(self, deploy: nn.Module) -> bool:
        """Whether the deployed member learns by `fit`, once, and by no step: its recipe has epochs=0."""
        return False

    def fit(self, deploy: nn.Module, data: FitData) -> None:
        """Fit the deployed member in place, where `fits`; the same data and seed give the same weights."""
        raise NotImplementedError(f"{type(self).__name__} fits nothing")

    def settle(self, deploy: nn.Module, loader: Any, preprocessor: nn.Module) -> None:  # noqa: B027 - few tasks have one
        """Choose on the validation split what training leaves open, as buffers of `deploy`; before each validation.

        Training must not read those buffers. Called with the loader of the split and the preprocessor of its batches.
        """

    def embed(self, model: nn.Module, inputs: Any) -> tuple[Tensor, Tensor]:
        """Class probabilities (B, K) and features (B, d) of a batch, by which active learning chooses.

        Raises: ConfigError where the task has none.
        """
        raise ConfigError(f"{type(self).__name__} gives no probabilities and features to choose images by")

    def describe(self, deploy: nn.Module, member: nn.Module) -> dict[str, Any]:
        """What decides how `member`'s input is made from the data set's pixels; part of the teacher cache's key."""
        return dict(adapter=type(self).__name__)
