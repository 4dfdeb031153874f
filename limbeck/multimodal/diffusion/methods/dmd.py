"""Distribution matching distillation: a one-step generator follows the difference of two scores (arXiv 2311.18828)."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor

from limbeck.engine.cost import evaluating
from limbeck.engine.method import LinkInputs, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError
from limbeck.multimodal.diffusion.adapter import denoiser
from limbeck.multimodal.diffusion.denoiser import Denoiser
from limbeck.multimodal.diffusion.methods._base import StepDistillation, per_image


@METHODS.register_module()
class DMD(StepDistillation):
    """One step from noise, x_g = x0 of the student at (ε, t_last), is moved where the teacher's score points and the
    score of the student's own images does not. The latter is that of a second denoiser ψ, trained beside on x_g.

        t uniform in 2 … 98 % of the times, z_t = α_t x_g + σ_t ε',  g = (x̂_ψ - x̂_T)(z_t, t) / mean|x_g - x̂_T|
        L_DM = ½ mean (x_g - sg[x_g - g])²,   whose gradient is g / numel
        L_ψ = mean (v̂_ψ - v)²  on x_g without graph, at t uniform over all times

    (DMD, §3, and DMD2's code, arXiv 2405.14867: generator every `ratio`-th step, no regression, no GAN.) No image is
    read. ASSUMPTION: the variance-preserving form with x0 predictions; L_ψ weighs as a v-loss, where the official one
    has the weight of its EDM teacher.

    The weights of ψ are the link's own, with an optimiser of their own.

    Args:
        ratio: ψ's steps for one of the student's.
        first: share of the run in which only ψ is trained.
        fake_weight: on L_ψ.
        fake_lr: rate of ψ's Adam, which follows the recipe's schedule.
        kwargs: see `StepDistillation`.
    Raises: ConfigError.
    """

    reads_images = False
    own_terms = frozenset({"fake"})
    unused_parameters = True
    assumption: ClassVar[str] = "Without the regression and GAN terms; the second denoiser has the loss of v."

    def __init__(
        self,
        *,
        ratio: int = 5,
        first: float = 0.05,
        fake_weight: float = 1.0,
        fake_lr: float = 1e-4,
        weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        # At the start ψ is the teacher, and g exactly 0.
        super().__init__(weight=weight, **{"may_be_zero": True, **kwargs})
        if ratio < 1 or not 0.0 <= first < 1.0 or fake_weight <= 0 or fake_lr <= 0:
            raise ConfigError(
                "DMD has ratio of 1 or more, first in [0, 1), fake_weight and fake_lr above 0; got "
                f"{ratio}, {first}, {fake_weight} and {fake_lr}"
            )
        self.ratio, self.first, self.fake_weight = ratio, first, fake_weight
        self.optimizer = dict(type="Adam", lr=fake_lr)  # type: ignore[misc]  # of this link
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))

    done: Tensor
    fake: Denoiser

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        super().connect(teacher_shapes, student_shapes)
        self.fake = deepcopy(denoiser(self.members[self.teachers[0]])).requires_grad_(True).train()

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        draw = self.generator(batch)
        start, labels = self.noise(batch, draw), self.labels(batch, draw)
        turn = int(self.done) % self.ratio == 0 and batch.progress >= self.first
        self.done += 1
        with torch.set_grad_enabled(turn):
            made = self.generated(batch, start, labels)
        losses = {"fake": self.fake_weight * self.fake_loss(made.detach(), labels, draw)}
        if turn:
            losses["dm"] = self.matching(batch, made, labels, draw)
        return losses

    def generated(self, batch: LinkInputs, start: Tensor, labels: Tensor | None) -> Tensor:
        """x_g (B, C, H, W), one step of the student from noise."""
        t = torch.full((len(start),), self.noise_schedule.steps - 1, device=start.device)
        return self.ask(batch, self.student, start, t, labels)

    def fake_loss(self, made: Tensor, labels: Tensor | None, draw: torch.Generator) -> Tensor:
        """L_ψ of images (B, C, H, W) without graph."""
        t = torch.randint(self.noise_schedule.steps, (len(made),), generator=draw).to(made.device)
        noise = torch.randn(made.shape, generator=draw).to(made.device)
        z = self.noise_schedule.add_noise(made, noise, t)
        v = self.noise_schedule.alpha(t) * noise - self.noise_schedule.sigma(t) * made
        return (self.fake.predict(z, t, labels).v.float() - v).square().mean()

    def matching(self, batch: LinkInputs, made: Tensor, labels: Tensor | None, draw: torch.Generator) -> Tensor:
        """L_DM of images (B, C, H, W) with graph."""
        times = self.noise_schedule.steps
        t = torch.randint(times // 50, times - times // 50, (len(made),), generator=draw).to(made.device)
        noise = torch.randn(made.shape, generator=draw).to(made.device)
        with torch.no_grad(), evaluating(self.fake):  # as the teacher is: else dropout alone would make a g
            z = self.noise_schedule.add_noise(made, noise, t)
            real = self.ask(batch, self.teachers[0], z, t, labels)
            fake = self.fake.predict(z, t, labels).x0.float()
            scale = per_image((made - real).abs()).reshape(-1, 1, 1, 1)
            g = torch.nan_to_num((fake - real) / scale)
        return 0.5 * (made - (made - g).detach()).square().mean()
