"""Learning masks on the teacher alone, as stage 1 of MasKD (arXiv 2205.14589): its own task loss on masked maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from limbeck.detection.targets import DetectionTargets, mmdet_samples
from limbeck.engine.losses import IGNORE
from limbeck.errors import ConfigError, NonFiniteLoss

Sample = tuple[list[Tensor], Any]  # maps (B, C, h, w), and targets: boxes, or label maps (B, H, W)
Reader = Callable[[], Iterable[tuple[list[Tensor], Any, Any]]]
LAST_RATE = 1e-6


def task_loss(teacher: nn.Module, maps: Sequence[Tensor], targets: Any) -> Tensor:
    """The teacher's own loss where `maps` are in the place of what was tapped.

    For label maps (B, H, W) the cross entropy of `maps[0]`, logits, brought to their size, over pixels with a class;
    for boxes the sum of the losses of the detector's heads, on `maps` as its pyramid.

    Returns: scalar; gradient reaches the maps, and no weight that is frozen.
    Raises: ConfigError for other targets, or a teacher without heads for these maps.
    """
    if isinstance(targets, Tensor) and targets.dim() == 3:
        large = F.interpolate(maps[0].float(), targets.shape[-2:], mode="bilinear", align_corners=False)
        valid = (targets != IGNORE).sum().clamp(min=1)
        return F.cross_entropy(large, targets.long(), ignore_index=IGNORE, reduction="sum") / valid
    if not isinstance(targets, DetectionTargets) or not (hasattr(teacher, "extract_feat") and hasattr(teacher, "loss")):
        raise ConfigError(
            "masks are learned by a detector of mmdetection on boxes, or on label maps (B, H, W); got "
            f"{type(teacher).__name__} and targets {type(targets).__name__}: name what was learned beforehand"
        )
    head = getattr(teacher, "bbox_head", None)
    head = getattr(teacher, "rpn_head", None) if head is None else head
    wanted = getattr(getattr(head, "prior_generator", None), "num_levels", len(maps))
    if wanted != len(maps):
        raise ConfigError(
            f"masks are learned on all {wanted} levels that the teacher's head reads, from neck[0] on; got {len(maps)} "
            "taps: name one pair of taps for each"
        )
    samples = mmdet_samples(targets.shapes, targets.input_shape, targets)
    with training_form(teacher), _pyramid(teacher, maps):
        losses = teacher.loss(None, samples)  # type: ignore[operator]
    parts = [part for name, part in losses.items() if "loss" in name]
    return torch.stack([x.mean() for part in parts for x in ([part] if isinstance(part, Tensor) else part)]).sum()


@contextmanager
def training_form(model: nn.Module) -> Iterator[None]:
    """In training mode but for batch norm: some heads, as FCOS's, give other outputs in evaluation than in training."""
    before = {module: module.training for module in model.modules()}
    for module in before:
        module.training = not isinstance(module, _NormBase)
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


@contextmanager
def _pyramid(detector: nn.Module, maps: Sequence[Tensor]) -> Iterator[None]:
    """The detector's heads read `maps`, whatever the image."""
    detector.extract_feat = lambda _: tuple(maps)  # type: ignore[assignment]
    try:
        yield
    finally:
        del detector.extract_feat


def learn_on_teacher(
    parameters: Sequence[Tensor],
    loss: Callable[[list[Tensor], Any], Tensor],
    batches: Iterable[Sample],
    *,
    iterations: int,
    lr: float = 0.01,
    weight_decay: float = 1e-3,
) -> Tensor:
    """Adam on `loss(maps, targets)` of every batch, the rate a half cosine from `lr` to 1e-6, as MasKD's detection.

    Args:
        parameters: leaves that are changed in place; they ask for no gradient afterwards.
        batches: as many as iterations, or more.
    Returns: the loss of every iteration, (iterations,).
    Raises: NonFiniteLoss when a loss or a parameter became NaN or infinite.
    """
    optimizer = torch.optim.Adam([p.requires_grad_() for p in parameters], lr=lr, weight_decay=weight_decay)
    device, losses = parameters[0].device, []
    with torch.enable_grad():
        for step, (maps, targets) in zip(range(iterations), batches):
            share = 0.5 * (1 + math.cos(math.pi * step / iterations))
            optimizer.param_groups[0]["lr"] = LAST_RATE + (lr - LAST_RATE) * share
            value = loss([m.to(device).float() for m in maps], _each(targets, lambda x: x.to(device)))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            losses.append(value.detach())
    for parameter in parameters:
        parameter.grad = None
        parameter.requires_grad_(False)
    found = torch.stack(losses).cpu()
    if not all(bool(torch.isfinite(x).all()) for x in (found, *parameters)):
        raise NonFiniteLoss(
            f"the masks' loss on the teacher became non-finite within {iterations} iterations at learning rate {lr}; "
            "lower stage1_lr, or check the teacher"
        )
    return found


def map_batches(read: Reader, *, size: int, max_megabytes: float) -> Iterator[Sample]:
    """Batches of the teacher's maps without end, as float16 on the CPU, and their targets.

    The split is kept in memory where it takes at most `max_megabytes` (10⁶ bytes), and every pass draws another order
    from torch's generator, of samples where all have one size, else of the loader's batches. Where it takes more, the
    teacher is run again for every pass, in the order of ids.

    Args:
        read: starts a pass over the split; yields (maps, targets, ids).
        size: samples a batch where they are drawn one by one, or all where there are fewer.
    Raises: ConfigError without samples.
    """
    stream, kept, used = _packed(read()), [], 0
    for maps, targets in stream:
        kept.append((maps, targets))
        used += sum(2 * m.numel() for m in maps)
        if used > max_megabytes * 1e6:
            while kept:
                yield kept.pop(0)
            yield from stream
            while True:
                yield from _packed(read())
    if not kept:
        raise ConfigError("masks are learned on the training split, which has no samples; check the data set")
    if len({tuple(m.shape[1:] for m in maps) for maps, _ in kept}) > 1:
        while True:
            for index in torch.randperm(len(kept)).tolist():
                yield kept[index]
    maps = [torch.cat(parts) for parts in zip(*(maps for maps, _ in kept))]
    targets = _joined([targets for _, targets in kept])
    kept.clear()
    size = min(size, len(maps[0]))
    while True:
        order = torch.randperm(len(maps[0]))
        for start in range(0, len(order) - size + 1, size):
            rows = order[start : start + size]
            yield [m[rows] for m in maps], _each(targets, lambda x, rows=rows: x[rows])


def _packed(samples: Iterable[tuple[list[Tensor], Any, Any]]) -> Iterator[Sample]:
    for maps, targets, _ in samples:
        yield [m.detach().half().cpu() for m in maps], _each(targets, lambda x: x.cpu())


def _fields(targets: Any) -> dict[str, Tensor]:
    found = {name: getattr(targets, name) for name in ("boxes", "labels", "shapes", "crowd")}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _each(targets: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Targets whose tensors, all with a batch axis, are changed."""
    if isinstance(targets, Tensor):
        return change(targets)
    return replace(targets, **{name: change(value) for name, value in _fields(targets).items()})


def _joined(many: Sequence[Any]) -> Any:
    """The targets of several batches as one; boxes are padded to the largest number."""
    if isinstance(many[0], Tensor):
        return torch.cat(list(many))
    most = max(targets.labels.shape[1] for targets in many)
    fields: dict[str, list[Tensor]] = {}
    for targets in many:
        missing = most - targets.labels.shape[1]
        for name, value in _fields(targets).items():
            if name != "shapes":
                fill = -1 if name == "labels" else 0
                value = F.pad(value, (0, 0, 0, missing) if name == "boxes" else (0, missing), value=fill)
            fields.setdefault(name, []).append(value)
    return replace(many[0], **{name: torch.cat(parts) for name, parts in fields.items()})
