"""Diversity distillation: the base model makes the first steps, its student the rest (arXiv 2503.10637).

Nothing is trained. The noisy image itself is handed over, at the time where the student goes on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.engine.cost import evaluating
from limbeck.errors import ConfigError
from limbeck.multimodal.diffusion.denoiser import Denoiser
from limbeck.multimodal.diffusion.samplers import Sampler, Samples


def hand_over(
    base: Denoiser,
    student: Denoiser,
    noise: Tensor,
    labels: Tensor | None = None,
    *,
    student_steps: int,
    at: int,
    base_steps: int | None = None,
    guidance: float = 1.0,
    student_guidance: float = 1.0,
    student_kind: str = "ddim",
    clip: bool | None = None,
    generators: Sequence[torch.Generator] | None = None,
    record: bool = False,
) -> Samples:
    """Sample with the base by DDIM down to the student's step `at`, then with the student from there.

    `at` = 0 is the student's own sampler and `at` = `student_steps` the base's, both bit for bit. The paper's "first
    step" is `at` = 1; its code reads it in two ways. With `base_steps` None the base walks the student's own times and
    makes `at` calls; with 20 to 50 it walks its own finer ones and makes ⌈at · base_steps / student_steps⌉ calls.

    ASSUMPTION: where the base's times skip the hand-over time, the base's last step is a shorter one that ends exactly
    there; the official code takes the base's nearest time instead and passes the mismatch on to the student.

    A student that is trained at the first time alone, as BOOT's, cannot go on from another.

    Args:
        noise, labels: (B, C, H, W) and (B,), as for `Sampler.sample`.
        student_steps: n, the student's number of steps.
        at: k in 0 … n, the student's steps that the base makes instead.
        base_steps: the base's number of steps from noise to image; None is n.
        guidance: of the base. student_guidance: of the student.
        student_kind: the student's sampler, 'ddim' or 'consistency' as a rule; see `Sampler`.
        clip: see `Sampler`.
        generators: one an image, where the student's sampler is stochastic.
        record: keep x0s, the base's followed by the student's.
    Returns: samples; `calls` is both models' together, with 2 for a guided step.
    Raises: ConfigError for `at` out of range, or models that differ in schedule or image shape; as `Sampler.sample`.
    """
    if not isinstance(at, int) or not 0 <= at <= student_steps:
        raise ConfigError(f"hand-over is at a step 0 … {student_steps} of the student; got at={at!r}")
    if not base.schedule.same_as(student.schedule):
        raise ConfigError("base and student have different noise schedules: what one makes is no input of the other's")
    if base.image_shape != student.image_shape:
        raise ConfigError(f"base makes images {base.image_shape} and student {student.image_shape}; they must be equal")
    first = Sampler("ddim", student_steps if base_steps is None else base_steps, guidance, clip)
    second = Sampler(student_kind, student_steps, student_guidance, clip)
    made = _down_to(base, first, noise, labels, student_steps, at, record)
    rest = second.run(student, made.images, labels, first=at, generators=generators, record=record)
    x0s = None if made.x0s is None or rest.x0s is None else torch.cat([made.x0s, rest.x0s])
    return Samples(rest.images, made.calls + rest.calls, torch.cat([made.times, rest.times]), x0s)


@torch.no_grad()
def _down_to(
    base: Denoiser, sampler: Sampler, z: Tensor, labels: Tensor | None, student_steps: int, at: int, record: bool
) -> Samples:
    """The base's part: whole steps of its own, and a shorter one where they do not meet the student's time."""
    whole, rest = divmod(at * sampler.steps, student_steps)
    made = sampler.run(base, z, labels, last=whole, record=record)
    if not rest:
        return made
    schedule, state, before = base.schedule, made.images, base.calls
    now, then = int(schedule.trailing(sampler.steps)[whole]), int(schedule.trailing(student_steps)[at])
    with evaluating(base):
        x0 = sampler.x0(base, state, now, labels)
    x0s = None if made.x0s is None else torch.cat([made.x0s, x0[None]])
    times = torch.cat([made.times, torch.tensor([now])])
    return Samples(schedule.ddim(state, x0, now, then), made.calls + base.calls - before, times, x0s)
