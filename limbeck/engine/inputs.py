"""What a classifier is fed: normalisation and input size, set on the model as attributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from limbeck.errors import ConfigError

Stat = float | Sequence[float]


@dataclass(frozen=True, slots=True)
class Normalization:
    """Mean and standard deviation of each input channel, on a [0, 1] pixel scale."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise ConfigError(f"mean {self.mean} and std {self.std} need one value for each channel")
        if min(self.std) <= 0:
            raise ConfigError(f"std must be positive; got {self.std}")


def describe(model: nn.Module, mean: Stat, std: Stat, input_size: Sequence[int]) -> nn.Module:
    """Set `normalization` and `input_size` on a model and return it; a single number serves every channel.

    Raises: ConfigError when mean, std and input_size disagree about the channels.
    """
    size = tuple(int(n) for n in input_size)
    if len(size) != 3 or min(size) < 1:
        raise ConfigError(f"input_size is (channels, height, width); got {tuple(input_size)}")
    values = Normalization(_per_channel(mean, size[0]), _per_channel(std, size[0]))
    if len(values.mean) != size[0]:
        raise ConfigError(f"mean has {len(values.mean)} values, input_size {size} has {size[0]} channels")
    model.normalization = values  # type: ignore[assignment]  # nn.Module types attributes as tensors or modules
    model.input_size = size  # type: ignore[assignment]
    return model


def _per_channel(value: Stat, channels: int) -> tuple[float, ...]:
    if isinstance(value, (int, float)):
        return (float(value),) * channels
    return tuple(float(v) for v in value)
