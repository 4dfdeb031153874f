"""Weight schedules: how a link's weight changes with the run's progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from limbeck.errors import ConfigError, UnknownName

Schedule = Callable[[float], float]


def constant() -> Schedule:
    """Always 1."""
    return lambda progress: 1.0


def warmup(*, start: float = 0.0, end: float = 0.1) -> Schedule:
    """Rise linearly from 0 at progress `start` to 1 at progress `end`, then stay."""
    if not 0.0 <= start < end <= 1.0:
        raise ConfigError(f"a warmup schedule needs 0 <= start < end <= 1; got start={start}, end={end}")
    return lambda progress: min(max((progress - start) / (end - start), 0.0), 1.0)


def decay(*, start: float = 0.0, end: float = 1.0) -> Schedule:
    """Fall linearly from 1 at progress `start` to 0 at progress `end`, then stay."""
    rise = warmup(start=start, end=end)
    return lambda progress: 1.0 - rise(progress)


def cosine() -> Schedule:
    """Half a cosine from 1 at the start of the run to 0 at its end."""
    return lambda progress: 0.5 * (1.0 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


def window(*, start: float = 0.0, end: float = 1.0) -> Schedule:
    """1 while `start` <= progress < `end`, else 0."""
    return lambda progress: float(start <= progress < end)


def epochs(*, warmup_epochs: int, total_epochs: int) -> Schedule:
    """min(epoch / warmup_epochs, 1) with epochs counted from 1, as the DKD trainer does (arXiv 2203.08679)."""
    if warmup_epochs < 1 or total_epochs < 1:
        raise ConfigError(f"an epochs schedule needs positive counts; got {warmup_epochs} of {total_epochs}")
    return lambda progress: min((math.floor(progress * total_epochs + 1e-9) + 1) / warmup_epochs, 1.0)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    f.__name__: f for f in (constant, warmup, decay, cosine, window, epochs)
}


def build_schedule(cfg: Mapping[str, Any] | None) -> Schedule:
    """Build a schedule from `dict(type='warmup', end=0.1)`; None is constant.

    Raises: UnknownName for an unknown type; ConfigError for arguments that do not fit.
    """
    args = dict(cfg or {"type": "constant"})
    name = args.pop("type", "constant")
    if name not in SCHEDULES:
        raise UnknownName("schedule", str(name), SCHEDULES)
    try:
        return SCHEDULES[name](**args)
    except TypeError as error:
        raise ConfigError(f"schedule {name!r}: {error}") from error
