"""Progressive distillation: one step of the student where the teacher takes two (arXiv 2202.00512)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from limbeck.engine.method import LinkInputs, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, UnknownName
from limbeck.multimodal.diffusion.methods._base import StepDistillation, per_image
from limbeck.multimodal.diffusion.schedule import NoiseSchedule

WEIGHTS = ("snr_trunc", "snr+1", "constant", "snr")


@METHODS.register_module()
class ProgressiveDistillation(StepDistillation):
    """A student of N steps whose every DDIM step lands where two steps of the teacher, of 2N, land.

    With i uniform on the student's N times, z_t = α_t x + σ_t ε of an image x, and the teacher's steps t → t' → t'':

        x̃ = (z_t'' - (σ_t''/σ_t) z_t) / (α_t'' - (σ_t''/σ_t) α_t),   at the last time t'' = -1: x̃ = x̂_T(z_t', t')
        loss = mean_B w(t) mean (x̂_S(z_t, t) - x̃)²

    (Salimans and Ho, algorithm 2 and appendix G). One halving; as `loop=dict(type='Halving')` a run is a row of them.

    Args:
        steps: N; 2N divides the schedule's times.
        loss_weight: w: 'snr_trunc' max(SNR, 1), the official one for CIFAR-10; 'snr+1', which is the error of v;
            'constant'; 'snr', of which the first time of a sampler learns next to nothing.
        clip_targets: clamp the teacher's x0 to [-1, 1], and ε with it, as its sampler does; the official code does not.
        kwargs: see `StepDistillation`. Guidance of the teacher is folded into the student (ASSUMPTION: one fixed w, in
            the first halving; arXiv 2210.03142 draws it and gives it to the student).
    Raises: ConfigError, UnknownName.
    """

    assumption: ClassVar[str] = ""

    def __init__(
        self, *, steps: int, loss_weight: str = "snr+1", clip_targets: bool = False, weight: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(weight=weight, **kwargs)
        if loss_weight not in WEIGHTS:
            raise UnknownName("loss_weight", loss_weight, WEIGHTS, "of ProgressiveDistillation")
        if not isinstance(steps, int) or steps < 1:
            raise ConfigError(f"ProgressiveDistillation makes a student of 1 step or more; got steps={steps!r}")
        self.steps, self.loss_weight, self.clip_targets = steps, loss_weight, clip_targets

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        super().connect(teacher_shapes, student_shapes)
        times = self.noise_schedule.steps
        if times % (2 * self.steps):
            raise ConfigError(
                f"a student of {self.steps} steps learns from a teacher of {2 * self.steps}, which do not divide the "
                f"schedule's {times}; choose steps of which the double divides {times}"
            )

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        x, draw = self.images(batch), self.generator(batch)
        grid = self.noise_schedule.trailing(self.steps)
        t = grid[torch.randint(self.steps, (len(x),), generator=draw)].to(x.device)
        labels = self.labels(batch, draw)
        z = self.noise_schedule.add_noise(x, self.noise(batch, draw), t)
        half = self.noise_schedule.steps // (2 * self.steps)
        first = self.of_teacher(batch, z, t, labels)
        middle = self.noise_schedule.ddim(z, first, t, t - half)
        second = self.of_teacher(batch, middle, t - half, labels)
        landed = self.noise_schedule.ddim(middle, second, t - half, t - 2 * half)
        target = one_step_target(self.noise_schedule, z, landed, second, t, t - 2 * half)
        error = per_image((self.ask(batch, self.student, z, t, labels) - target).square())
        return {"x0": (step_weight(self.noise_schedule, t, self.loss_weight) * error).mean()}


def one_step_target(schedule: NoiseSchedule, z: Tensor, landed: Tensor, last: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """x̃ (B, C, H, W): the x0 with which one DDIM step from z at t ends in `landed` at s.

    Args:
        last: the teacher's x0 of its second step, which is x̃ where s is -1.
    """
    wide = torch.float64
    ratio = schedule.sigma(s, wide) / schedule.sigma(t, wide)
    made = (landed.to(wide) - ratio * z.to(wide)) / (schedule.alpha(s, wide) - ratio * schedule.alpha(t, wide))
    return torch.where((s < 0).reshape(-1, 1, 1, 1), last, made.to(last.dtype))


def step_weight(schedule: NoiseSchedule, t: Tensor, kind: str) -> Tensor:
    """w(t), (B,), on the squared error of x0; see `ProgressiveDistillation`."""
    snr = schedule.snr(t).flatten()
    if kind == "constant":
        return torch.ones_like(snr)
    return {"snr": snr, "snr+1": snr + 1, "snr_trunc": snr.clamp(min=1)}[kind]
