"""The network that SimKD (arXiv 2203.14001) deploys: a student's backbone, a projector, its teacher's classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.cost import evaluating
from limbeck.engine.inputs import Normalization, describe
from limbeck.engine.registry import MODELS
from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.vision._cifar_net import GlobalPool


class Projector(nn.Sequential):
    """1×1, 3×3 and 1×1 convolution without bias, batch norm and ReLU after each: (B, C_S, H, W) to (B, C_T, H, W).

    The two maps between have C_T // factor channels. The output is never negative, as a teacher's map after its ReLU.
    """

    def __init__(self, student: int, teacher: int, factor: int) -> None:
        inner = teacher // factor
        layers: list[nn.Module] = []
        for in_chs, out_chs, kernel in ((student, inner, 1), (inner, inner, 3), (inner, teacher, 1)):
            conv = nn.Conv2d(in_chs, out_chs, kernel, padding=kernel // 2, bias=False)
            layers += [conv, nn.BatchNorm2d(out_chs), nn.ReLU()]
        super().__init__(*layers)


@MODELS.register_module()
class SimKDStudent(nn.Module):
    """A classifier that ends as another network does: logits = fc(mean over positions of projector(backbone's map)).

    `student` is the backbone without its own head: what `forward_features` does not call is taken out, so that neither
    parameters nor weight files hold what is unused. The method `SimKD` sets `fc` to the teacher's classifier and
    freezes it; built alone, the model is a classifier like any other, which loads a SimKD student's weights.

    Taps: `projector` (B, teacher_channels, H, W), `global_pool` (B, teacher_channels), `fc`, and the backbone's below
    `student.`. Normalisation and input size are the backbone's.

    Args:
        student: the backbone's model config; any with `forward_features` to a map (B, C, H, W).
        teacher_channels: of the teacher's last map, which its classifier reads.
        num_classes: of the teacher.
        factor: what divides the channels inside the projector; 2 in the paper.
        map_size: of the teacher's last map, height and width: a larger map of the student is average-pooled to it
            before the projector. None never pools.
    Raises: ConfigError for a backbone without a last map, or a factor that leaves the projector no channels.
    """

    normalization: Normalization
    input_size: tuple[int, int, int]

    def __init__(
        self,
        student: Mapping[str, Any],
        teacher_channels: int,
        num_classes: int = 10,
        factor: int = 2,
        map_size: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if factor < 1 or teacher_channels < factor:
            raise ConfigError(
                f"SimKDStudent needs 1 <= factor <= teacher_channels; got factor {factor} of {teacher_channels}"
            )
        self.map_size = None if map_size is None else _size(map_size)
        self.num_classes = num_classes
        self.num_features = teacher_channels
        backbone = cast(nn.Module, MODELS.make(student, where="as student of SimKDStudent"))
        channels = _strip_head(backbone)
        self.student = backbone
        self.projector = Projector(channels, teacher_channels, factor)
        self.global_pool = GlobalPool()
        self.fc = nn.Linear(teacher_channels, num_classes)
        source = cast(Any, backbone)
        describe(self, source.normalization.mean, source.normalization.std, source.input_size)

    def get_classifier(self) -> nn.Linear:
        """The teacher's classifier."""
        return self.fc

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the projected map (B, teacher_channels, H', W').

        Raises: ShapeMismatch in training for one sample whose map is one pixel, where batch norm cannot average.
        """
        x = cast(Any, self.student).forward_features(x)
        if self.map_size is not None:
            size = (min(x.shape[2], self.map_size[0]), min(x.shape[3], self.map_size[1]))
            x = x if tuple(x.shape[2:]) == size else F.adaptive_avg_pool2d(x, size)
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            raise ShapeMismatch(
                "SimKDStudent: batch norm cannot train on one sample of 1×1 pixels; a batch_size of 2 or more would fit"
            )
        return self.projector(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The projected map to logits (B, classes), or to the pooled feature (B, teacher_channels)."""
        pooled = self.global_pool(x)
        return pooled if pre_logits else self.fc(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to logits (B, classes)."""
        return self.forward_head(self.forward_features(x))


def _size(value: int | Sequence[int]) -> tuple[int, int]:
    size = (value, value) if isinstance(value, int) else tuple(int(n) for n in value)
    if len(size) != 2 or min(size) < 1:
        raise ConfigError(f"map_size of SimKDStudent is a height and a width, or one number; got {value!r}")
    return size


def _strip_head(backbone: nn.Module) -> int:
    """Take out the modules that `forward_features` does not call; the last map's channels.

    Raises: ConfigError when there is no such method, or what it gives is no map (B, C, H, W).
    """
    name, source = type(backbone).__name__, cast(Any, backbone)
    for needed in ("forward_features", "normalization", "input_size"):
        if not hasattr(backbone, needed):
            raise ConfigError(f"SimKDStudent needs a backbone with {needed}; {name} has none")
    called: set[nn.Module] = set()
    handles = [m.register_forward_hook(lambda module, *_: called.add(module)) for m in backbone.modules()]
    weight = next(backbone.parameters())
    try:
        with evaluating(backbone), torch.no_grad():
            found = source.forward_features(torch.zeros(1, *source.input_size).to(weight))
    finally:
        for handle in handles:
            handle.remove()
    features = getattr(backbone, "num_features", None)
    shape = tuple(found.shape) if isinstance(found, Tensor) else ()
    if len(shape) != 4 or (features is not None and features != shape[1] and features == shape[3]):
        raise ConfigError(
            f"SimKDStudent needs a backbone whose last map is (B, C, H, W); {name} gives "
            f"{shape or type(found).__name__} (tokens and channels-last maps do not fit)"
        )
    for key, child in list(backbone.named_children()):
        if called.isdisjoint(child.modules()) and next(child.parameters(), None) is not None:
            setattr(backbone, key, nn.Identity())
    return shape[1]
