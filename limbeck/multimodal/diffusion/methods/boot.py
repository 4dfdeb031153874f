"""BOOT: one-step students without data, bootstrapped along the signal of the teacher's path (arXiv 2306.05544)."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from limbeck.engine.method import LinkInputs, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, UnknownName
from limbeck.multimodal.diffusion.generator import BOOTGenerator, Noisy
from limbeck.multimodal.diffusion.methods._base import StepDistillation, per_image

WEIGHTS = ("uniform", "inv", "inv_sq")


@METHODS.register_module()
class BOOT(StepDistillation):
    """The student y(ε, t) gives, from the noise alone, the signal of the teacher's path at time t: no image is read.

        x̂_t = α_t y(ε, t) + σ_t ε,  f = x0 of the teacher at (x̂_t, t),  r = exp(λ_s - λ_t),  s = t - step
        L_BS = mean_B w(t) mean (y(ε, s) - [r y(ε, t) + (1 - r) f])²     [ ] without graph
        L_BC = mean (y(ε, t_max) - x0 of the teacher at (ε, t_max))²,   L = L_BS + boundary · L_BC

    (Gu et al., §3; the discrete form with 1 - r, which is an exact DDIM step.) The student is a `BOOTGenerator`.
    ASSUMPTION: there is no official code, and the defaults are ours, found in a small trial of the specification.

    Args:
        step: of time, in the schedule's units; None is a twentieth of its times.
        t_max: latest time; None is the last one but a hundredth. The earliest is the student's `t_min`.
        boundary: β of L_BC.
        boundary_share: of the batch on which L_BC is taken; ASSUMPTION a quarter, for it is the easier part.
        step_weight: w: 'uniform' 1; 'inv' 1 / max(1 - r, 0.05); 'inv_sq' 1 / (1 - r)², the paper's.
        heun: f is the mean of the teacher's at t and at s, where its own step ends: one call more.
        clip_targets: clamp f to [-1, 1].
        kwargs: see `StepDistillation`.
    Raises: ConfigError, UnknownName.
    """

    default_taps = (("x0", "output"),)
    reads_images = False
    assumption: ClassVar[str] = "There is no official code: the defaults are ours."

    def __init__(
        self,
        *,
        step: int | None = None,
        t_max: int | None = None,
        boundary: float = 0.5,
        boundary_share: float = 0.25,
        step_weight: str = "uniform",
        heun: bool = True,
        clip_targets: bool = True,
        weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight=weight, **kwargs)
        if step_weight not in WEIGHTS:
            raise UnknownName("step_weight", step_weight, WEIGHTS, "of BOOT")
        if boundary < 0 or not 0.0 < boundary_share <= 1.0:
            raise ConfigError(
                f"boundary of BOOT is 0 or more and boundary_share in (0, 1]; got {boundary} and {boundary_share}"
            )
        self.step, self.t_max, self.step_weight = step, t_max, step_weight
        self.boundary, self.boundary_share = boundary, boundary_share
        self.heun, self.clip_targets = heun, clip_targets

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        super().connect(teacher_shapes, student_shapes)
        if not isinstance(self.learner, BOOTGenerator):
            raise ConfigError("BOOT trains a student that reads noise: build it with boot_t_min=…")
        # One that predicts y and starts as the teacher fulfils the boundary condition from the first step on.
        self.may_be_zero = self.may_be_zero or self.learner.prediction == "sample"
        times = self.noise_schedule.steps
        self.step = max(times // 20, 1) if self.step is None else self.step
        self.t_max = times - 1 - times // 100 if self.t_max is None else self.t_max
        first = self.learner.t_min + self.step
        if self.step < 1 or not 0 <= self.learner.t_min < first <= self.t_max < times:
            raise ConfigError(
                f"times of BOOT are 0 <= t_min < t_min + step <= t_max < {times}; got t_min={self.learner.t_min}, "
                f"step={self.step}, t_max={self.t_max}"
            )

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        assert isinstance(self.learner, BOOTGenerator)
        assert self.step is not None
        assert self.t_max is not None
        draw = self.generator(batch)
        start = self.noise(batch, draw)
        t = torch.randint(self.learner.t_min + self.step, self.t_max + 1, (len(start),), generator=draw).to(
            start.device
        )
        labels, s = self.labels(batch, draw), t - self.step
        with torch.no_grad():
            y = self.signal(batch, start, t, labels)
            target, kept = self.bootstrapped(batch, start, y, t, s, labels)
        edge = max(round(self.boundary_share * len(start)), 1) if self.boundary else 0
        last = t.new_full((edge,), self.t_max)
        few = None if labels is None else labels[:edge]
        asked = labels if labels is None or few is None else torch.cat([labels, few])
        found = self.signal(batch, torch.cat([start, start[:edge]]), torch.cat([s, last]), asked)
        error = per_image((found[: len(start)] - target).square())
        losses = {"bootstrap": (self.weights(kept) * error).mean()}
        if edge:
            pinned = self.of_teacher(batch, start[:edge], last, few)
            losses["boundary"] = self.boundary * (found[len(start) :] - pinned).square().mean()
        return losses

    def signal(self, batch: LinkInputs, start: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """y(ε, t) of the student (B, C, H, W)."""
        assert batch.second_forward is not None
        (output,) = batch.second_forward(self.student, Noisy(start, t, labels))
        return cast(BOOTGenerator, self.learner).of_output(output.float())

    def bootstrapped(
        self, batch: LinkInputs, start: Tensor, y: Tensor, t: Tensor, s: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The target r y + (1 - r) f (B, C, H, W), and r (B, 1, 1, 1)."""
        path = self.noise_schedule
        r = (path.log_ratio(s, torch.float64) - path.log_ratio(t, torch.float64)).exp().to(y.dtype)
        f = self.of_teacher(batch, path.alpha(t) * y + path.sigma(t) * start, t, labels)
        if self.heun:
            moved = r * y + (1 - r) * f
            f = (f + self.of_teacher(batch, path.alpha(s) * moved + path.sigma(s) * start, s, labels)) / 2
        return r * y + (1 - r) * f, r

    def weights(self, r: Tensor) -> Tensor:
        """w(t), (B,)."""
        gap = (1 - r).flatten()
        if self.step_weight == "uniform":
            return torch.ones_like(gap)
        return 1 / gap.clamp(min=0.05) if self.step_weight == "inv" else gap.reciprocal().square()
