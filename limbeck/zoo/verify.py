"""Verify: a student's file is the one of its card, fits its model, and gives finite outputs on test samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from limbeck.errors import CorruptFile, UserError
from limbeck.zoo.load import load_student
from limbeck.zoo.sources import locate, weights

if TYPE_CHECKING:
    from limbeck.zoo.card import Card

Judge = Callable[["Card", Path], tuple[bool, str]]  # whether a card's figures hold with these weights, and in words


@dataclass(frozen=True, slots=True)
class Check:
    """What became of a student.

    samples: it was run on these, 'real', 'random' where its data is absent, or 'noise'; None where it does not load.
    text: 'holds' with what was checked, or what is wrong.
    """

    name: str
    holds: bool
    text: str
    samples: Literal["real", "random", "noise"] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The check as JSON values."""
        return asdict(self)


class Made(nn.Module):
    """A diffusion model as a function of a batch: image i of class i, whatever the batch holds."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Tensor) -> Tensor:
        """Images (B, C, H, W) for a batch of any B rows."""
        model = cast(Any, self.model)
        return model.generate([i % model.num_classes for i in range(len(batch))], seed=0).images


def ready(model: nn.Module) -> tuple[nn.Module, list[Any], Literal["real", "random", "noise"]]:
    """A student as a function, inputs of it, and what these are: its first test samples where its data is here.

    Images come as one batch (B, C, H, W), clouds one by one.
    """
    from limbeck.zoo.export import check_inputs
    from limbeck.zoo.export_lidar import check_clouds

    net: Any = model
    if net.card.generates:
        return Made(model), [torch.zeros(2, 1)], "noise"
    if net.card.detects_3d:
        origin, clouds = check_clouds(net.card, net.grid)
        return model, list(clouds), origin
    origin, images = check_inputs(net.card, net.preprocess)
    return model, [images], origin


def verify_student(name: str, *, zoo_dir: str | Path | None = None, judge: Judge | None = None) -> Check:
    """Check a student; what is wrong with it is in the result.

    Args:
        judge: evaluates the weights and says whether the card's figures hold; see `against_record`.
    Raises: UnknownName, ConfigError and the like for a student that is not there.
    """
    found = locate(name, zoo_dir=zoo_dir)
    shown = found.card.name
    try:
        path = weights(found)
        model = load_student(name, zoo_dir=zoo_dir)
        function, inputs, origin = ready(model)
        with torch.inference_mode():
            outputs = [tensor for batch in inputs for tensor in tensors(function(batch))]
    except CorruptFile as error:
        return Check(shown, False, str(error))
    wrong = [place for place, tensor in enumerate(outputs) if not bool(tensor.isfinite().all())]
    if wrong or not outputs:
        return Check(shown, False, f"output {wrong[0]} is not finite" if wrong else "there is no output", origin)
    if judge is None:
        return Check(shown, True, f"holds: hash, tensors, finite outputs on {origin} samples", origin)
    try:
        good, said = judge(found.card, path)
    except UserError as error:
        return Check(shown, False, f"cannot be evaluated: {error}", origin)
    return Check(shown, good, said, origin)


def tensors(output: Any) -> list[Tensor]:
    """All floating tensors of an output, whatever holds them."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        return [tensor for part in output.values() for tensor in tensors(part)]
    if isinstance(output, (list, tuple)):
        return [tensor for part in output for tensor in tensors(part)]
    return []
