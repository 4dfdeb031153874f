"""Images as network input: what every task that reads pixels does to bring a batch to each member's normalisation."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from mmengine.model import BaseDataPreprocessor
from torch import Tensor, nn

from limbeck.engine.adapter import Batch, TaskAdapter
from limbeck.engine.inputs import Normalization
from limbeck.errors import ConfigError

RAW = Normalization((0.0,), (1.0,))  # pixels in [0, 1]


def input_of(model: nn.Module) -> tuple[Normalization, tuple[int, int, int]]:
    """A model's normalisation and (channels, height, width).

    Raises: ConfigError when it was built elsewhere and says neither.
    """
    found, size = getattr(model, "normalization", None), getattr(model, "input_size", None)
    if not isinstance(found, Normalization) or size is None:
        raise ConfigError(
            f"{type(model).__name__} has no normalization and input_size; build it through a model of the registry"
        )
    return found, cast(tuple[int, int, int], size)


def affine_between(source: Normalization, target: Normalization) -> tuple[Tensor, Tensor]:
    """Scale and bias (C, 1, 1) in float64 that take pixels normalised by `source` to `target`'s normalisation.

    With x = (p - m₁) / s₁ the same pixel is (p - m₂) / s₂ = x · s₁/s₂ + (m₁ - m₂)/s₂; one channel serves for all.
    """
    m1, s1 = (torch.tensor(v, dtype=torch.float64) for v in (source.mean, source.std))
    m2, s2 = (torch.tensor(v, dtype=torch.float64) for v in (target.mean, target.std))
    return (s1 / s2).reshape(-1, 1, 1), ((m1 - m2) / s2).reshape(-1, 1, 1)


def check_channels(have: int, want: int) -> None:
    """Raises: ConfigError unless the channels are equal or one grey channel is to be repeated."""
    if have not in (1, want):
        raise ConfigError(
            f"images of {have} channels cannot feed a model of {want}; build the model with in_chans={have}"
        )


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) at another size, bilinear, smoothed where it shrinks; the same tensor where the size is right."""
    if x.shape[-2:] == size:
        return x
    shrinks = x.shape[-2] > size[0] or x.shape[-1] > size[1]
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=shrinks)


class PixelPreprocessor(BaseDataPreprocessor):
    """uint8 images (B, C, H, W) to the normalised float input of one model, on its device and at its input size."""

    scale: Tensor
    bias: Tensor

    def __init__(self, normalization: Normalization, input_size: tuple[int, int, int], *, resizes: bool = True) -> None:
        super().__init__()
        self.input_size = input_size
        self.resizes = resizes
        scale, bias = affine_between(RAW, normalization)
        self.register_buffer("scale", (scale / 255.0).float(), persistent=False)
        self.register_buffer("bias", bias.float(), persistent=False)

    def forward(self, data: Any, training: bool = False) -> dict[str, Any]:
        """`dict(inputs, data_samples)` with normalised inputs; the samples' tensors stay tensors, on the device."""
        moved = cast(dict[str, Any], self.cast_data(data))
        inputs = moved["inputs"]
        check_channels(inputs.shape[1], self.input_size[0])
        inputs = inputs.to(self.scale.dtype) * self.scale + self.bias
        inputs = resized(inputs, self.input_size[1:]) if self.resizes else inputs
        return {"inputs": inputs, "data_samples": moved.get("data_samples")}


class PixelAdapter(TaskAdapter):
    """A task whose models take normalised images (B, C, H, W); each member may want its own mean, std and size.

    Attributes:
        resizes: bring images to each member's input size; False where targets are in pixels, so that sizes are kept.
    """

    resizes: ClassVar[bool] = True

    def __init__(self) -> None:
        self._affine: dict[Any, tuple[Tensor, Tensor]] = {}

    def preprocessor(self, deploy: nn.Module) -> PixelPreprocessor:
        """Normalises for `deploy`, brings images to its input size, and repeats a grey channel if it wants three."""
        return PixelPreprocessor(*input_of(deploy), resizes=self.resizes)

    def member_inputs(self, batch: Batch, deploy: nn.Module, member: nn.Module) -> Tensor:
        """The batch normalised and sized for `member`: the very same tensor where both want the same."""
        inputs: Tensor = batch.inputs
        if member is deploy:
            return inputs
        (source, _), (target, size) = input_of(deploy), input_of(member)
        check_channels(inputs.shape[1], size[0])
        if source != target:
            scale, bias = self._between(source, target, inputs)
            inputs = inputs * scale + bias
        return resized(inputs, size[1:]) if self.resizes else inputs

    def _between(self, source: Normalization, target: Normalization, like: Tensor) -> tuple[Tensor, Tensor]:
        key = (source, target, like.device, like.dtype)
        if key not in self._affine:
            scale, bias = affine_between(source, target)
            self._affine[key] = (scale.to(like), bias.to(like))
        return self._affine[key]

    def describe(self, deploy: nn.Module, member: nn.Module) -> dict[str, Any]:
        """Normalisation and size of both: the pixels pass through the deployed model's on their way to the member's."""
        return {"adapter": type(self).__name__, "deploy": _facts(deploy), "member": _facts(member)}


def _facts(model: nn.Module) -> dict[str, Any]:
    normalization, size = input_of(model)
    return {"mean": list(normalization.mean), "std": list(normalization.std), "input_size": list(size)}
