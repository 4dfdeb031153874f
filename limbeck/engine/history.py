"""Training curves of a run: what its record keeps of epochs and validations, column by column, small and finite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

POINTS = 200  # of one column
DIGITS = 6  # significant ones of a figure
TOTAL = "loss"  # the sum of all terms, among the losses

Point = Annotated[float, Field(allow_inf_nan=False)] | None
Epochs = Annotated[list[PositiveInt], Field(max_length=POINTS)]
_Row = TypeVar("_Row")


class History(BaseModel):
    """The curves of one training, one value an epoch in each column; None where an epoch had no finite one.

    Of more than 200 epochs every k-th is kept, counted back from the last; of validations the same. It says how a run
    went and is no result: nothing is ranked, verified or compared by it.
    """

    # built at first use, as the record is
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    epochs: Epochs = Field(min_length=1, description="numbers of the epochs that are kept, from 1 on")
    learning_rate: list[Point] = Field(description="of the epoch's last step")
    losses: dict[str, list[Point]] = Field(
        description="mean over the epoch's steps and all processes, weighted as in the sum: 'loss' is the sum"
    )
    val_epochs: Epochs = Field(default_factory=list, description="epochs after which there was a validation")
    val_metrics: dict[str, list[Point]] = Field(default_factory=dict, description="of the weights as they were then")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """Columns are as long as their epochs, which rise."""
        for epochs, columns in (
            (self.epochs, {"learning_rate": self.learning_rate, **self.losses}),
            (self.val_epochs, self.val_metrics),
        ):
            if any(a >= b for a, b in pairwise(epochs)):
                raise ValueError("its epochs do not rise")
            for name, column in columns.items():
                if len(column) != len(epochs):
                    raise ValueError(f"{name!r} has {len(column)} values for {len(epochs)} epochs")
        return self


def history_of(
    epochs: Sequence[tuple[int, float, Mapping[str, float]]], validations: Sequence[tuple[int, Mapping[str, float]]]
) -> History | None:
    """The curves of a run; None of one that trained no epoch.

    Args:
        epochs: number, learning rate of the last step, mean of everything that the step returns, of each epoch; what
            has no 'loss' in its name is no loss and is left out, as mmengine leaves it out of the sum.
        validations: number of the epoch before, and the metrics.
    """
    if not epochs:
        return None
    kept, tested = _thinned(epochs), _thinned(validations)
    terms = dict.fromkeys(name for _, _, means in kept for name in means if TOTAL in name)
    metrics = dict.fromkeys(name for _, values in tested for name in values)
    return History(
        epochs=[number for number, _, _ in kept],
        learning_rate=[_point(rate) for _, rate, _ in kept],
        losses={name: [_point(means.get(name)) for _, _, means in kept] for name in terms},
        val_epochs=[number for number, _ in tested],
        val_metrics={name: [_point(values.get(name)) for _, values in tested] for name in metrics},
    )


def _thinned(rows: Sequence[_Row]) -> Sequence[_Row]:
    """Every k-th row, the last one among them; k is the least that leaves no more than `POINTS`."""
    step = max(1, math.ceil(len(rows) / POINTS))
    return rows[(len(rows) - 1) % step :: step]


def _point(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.{DIGITS}g}")
