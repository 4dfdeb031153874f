"""OFD: a comprehensive overhaul of feature distillation (arXiv 1904.01866)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from limbeck.engine.bridges import require_same_shape
from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Hardswish)


def partial_l2_loss(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """Squared distance to the teacher's map, but for negative responses where the teacher's are negative too.

    With S, T one element of each and k < 0 the channel's margin:
    T > 0: (S − T)²;  k < T ≤ 0: (S − T)² if S > T, else 0;  T ≤ k: (S − k)² if S > k, else 0.
    Summed over channels and positions, averaged over samples.

    Args:
        student, teacher: maps before the ReLU (B, C, H, W), same shape. The teacher's gradient is stopped.
        margin: k, (1, C, 1, 1).
    Returns: scalar ≥ 0, computed in float32.
    Raises: ShapeMismatch when the three do not fit.

    >>> s, t = torch.tensor([-3.0, -1.0, 1.0]), torch.tensor([-2.0, -2.0, 2.0])
    >>> loss = partial_l2_loss(s.view(1, 3, 1, 1), t.view(1, 3, 1, 1), torch.full((1, 3, 1, 1), -1.5))
    >>> loss.item()  # 0 + (−1 + 1.5)² + (1 − 2)²
    1.25
    """
    require_same_shape(student, teacher, "OFD")
    if student.dim() != 4 or tuple(margin.shape) != (1, student.shape[1], 1, 1):
        raise ShapeMismatch(
            f"OFD compares maps (B, C, H, W) with a margin (1, C, 1, 1); "
            f"got {tuple(student.shape)} and {tuple(margin.shape)}"
        )
    s, t, k = student.float(), teacher.detach().float(), margin.float()
    target = torch.maximum(t, k)
    counted = (t > 0) | (s > target)
    return torch.where(counted, s - target, 0.0).square().sum() / len(s)


def margins(weight: Tensor, bias: Tensor) -> Tensor:
    """Mean of a channel's negative responses, if batch norm leaves it as N(m, s²) with s = |weight|, m = bias.

    E[x | x < 0] = m − s φ(m/s) / Φ(−m/s); −3 s where negative responses are rarer than 1 in 1000. Always negative.

    Args:
        weight, bias: of the batch norm, (C,).
    Returns: (1, C, 1, 1).

    >>> round(margins(torch.ones(1), torch.zeros(1)).item(), 4)  # −√(2/π)
    -0.7979
    """
    s, m = weight.detach().double().abs().clamp_min(1e-12), bias.detach().double()
    z = m / s
    below = torch.special.ndtr(-z)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return torch.where(below > 0.001, m - s * density / below, -3 * s).float().view(1, -1, 1, 1)


class Connector(nn.Sequential):
    """1×1 convolution without bias, N(0, 2 / C_T), and batch norm: (B, C_S, H, W) to (B, C_T, H, W)."""

    def __init__(self, student: int, teacher: int) -> None:
        conv = nn.Conv2d(student, teacher, 1, bias=False)
        nn.init.normal_(conv.weight, std=math.sqrt(2 / teacher))
        super().__init__(conv, nn.BatchNorm2d(teacher))


@METHODS.register_module()
class OFD(Method):
    """Distils maps before the ReLU, at the ends of the stages: taps maps of both sides there, from shallow to deep.

    Each pair has a `Connector` on the student's side, trained with the student and dropped with the link, and a margin
    for each channel of the teacher, from the batch norm that comes last before the tap. Pair i of L counts 2^(i − L)
    times, i = 1 … L, so that the last counts fully. The teacher's map is average-pooled to the student's size.

    The default taps are `limbeck.vision.models`' (`preactN`); name a fourth stage where there is one. The loss is a sum
    over the positions and channels: the official weights are 1e-3 on CIFAR-100 and 1e-4 for ResNet-50 → MobileNetV1 on
    ImageNet, beside cross entropy at weight 1.

    Args:
        norms: the teacher's batch norms, one for each pair, by module name; None finds them: of the block that the tap
            is in, the last before the tap with the tap's channels.
        teacher_train_bn: the teacher's batch norm uses the batch's statistics, as in the paper, in a second forward of
            the teacher; its running statistics stay as they are.
        weight: factor on the term "partial".
        kwargs: see `Method`.
    """

    default_taps = (("preact1", "preact1"), ("preact2", "preact2"), ("preact3", "preact3"))
    wants_inputs = True
    connectors: nn.ModuleList

    def __init__(
        self,
        *,
        norms: Sequence[str] | None = None,
        teacher_train_bn: bool = False,
        weight: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight=weight, **kwargs)
        if norms is not None and len(norms) != len(self.taps):
            raise ConfigError(f"OFD needs one of norms for each of its {len(self.taps)} taps; got {list(norms)}")
        self.norms = norms
        self.teacher_train_bn = teacher_train_bn

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        pairs = list(zip(teacher_shapes, student_shapes, strict=True))
        for i, (teacher, student) in enumerate(pairs):
            if len(teacher) != 4 or len(student) != 4 or teacher[0] != student[0]:
                raise ShapeMismatch(
                    f"OFD: teacher tap {teacher} and student tap {student} do not fit; "
                    "maps (B, C, H, W) of one batch would, whatever their widths and sizes"
                )
            norm = self._norm(i, teacher[1])
            self.register_buffer(f"margin{i}", margins(norm.weight, norm.bias))
        self.connectors = nn.ModuleList([Connector(student[1], teacher[1]) for teacher, student in pairs])

    def _norm(self, index: int, channels: int) -> _BatchNorm:
        teacher, tap = self.members[self.teachers[0]], self.taps[index][0]
        named = None if self.norms is None else self.norms[index]
        if named is None:
            found = norm_before(teacher, tap, channels)
        else:
            found = dict(teacher.named_modules(remove_duplicate=False)).get(named)
        if isinstance(found, _BatchNorm) and found.affine and found.num_features == channels:
            return found
        where = f"right before teacher tap {tap!r}" if named is None else f"{named!r} of the teacher"
        raise ConfigError(
            f"OFD: there is no affine batch norm of {channels} channels {where}, which the margins are made from; "
            "tap maps before their ReLU (preact1, preact2, …), or name the batch norms in norms=[…]"
        )

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        teachers = batch.teacher
        if self.teacher_train_bn:
            teachers = self._with_batch_statistics(batch)
        losses = []
        for i, (connector, s, t) in enumerate(zip(self.connectors, batch.student, teachers, strict=True)):
            if t.shape[2:] != s.shape[2:]:
                t = F.adaptive_avg_pool2d(t.float(), (s.shape[2], s.shape[3]))
            share = 2.0 ** (i + 1 - len(self.taps))
            losses.append(share * partial_l2_loss(connector(s.float()), t, self.get_buffer(f"margin{i}")))
        return {"partial": torch.stack(losses).sum()}

    def _with_batch_statistics(self, batch: LinkInputs) -> list[Tensor]:
        name = self.teachers[0]
        if batch.second_forward is None:
            raise ConfigError("OFD with teacher_train_bn runs the teacher again, and can only do so in a training run")
        with batch_statistics(self.members[name]):
            return [t.detach() for t in batch.second_forward(name, batch.inputs[name])]


def norm_before(model: nn.Module, tap: str, channels: int) -> _BatchNorm | None:
    """The batch norm whose output a tap reads, or that its block adds to the shortcut; None where there is no such.

    The tap is a batch norm itself, or a module without children and parameters (an identity) after one in its block.
    The shortcut's own batch norm is nested deeper than the block's, which is taken where there are both.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    tapped = modules.get(tap)
    if tapped is None or isinstance(tapped, _BatchNorm):
        return tapped
    if [*tapped.children(), *tapped.parameters()] or isinstance(tapped, ACTIVATIONS):
        return None  # a stage ends after its ReLU, and a convolution changes what batch norm gave
    # A tap may be a second name of a module that lies in a block: the longest path is the module's own.
    path = max((name for name, module in modules.items() if module is tapped), key=lambda name: name.count("."))
    block = modules[path.rpartition(".")[0]]
    own: _BatchNorm | None = None
    nested: _BatchNorm | None = None
    for child in block.children():
        if child is tapped:
            break
        for module in child.modules():
            if isinstance(module, ACTIVATIONS):
                own = nested = None  # what came before it is not what the tap reads
            elif isinstance(module, _BatchNorm) and module.num_features == channels:
                own, nested = (module, nested) if module is child else (own, module)
    return own or nested


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Let every batch norm normalise by the batch's statistics and keep its running ones, inside the `with` block."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    before = [(m, m.training, m.track_running_stats) for m in norms]
    try:
        for m in norms:
            m.training, m.track_running_stats = True, False
        yield
    finally:
        for m, training, tracked in before:
            m.training, m.track_running_stats = training, tracked
