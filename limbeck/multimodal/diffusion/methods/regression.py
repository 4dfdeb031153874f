"""Regression on the teacher's samples: a one-step student by plain supervision (arXiv 2101.02388)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from limbeck.engine.method import LinkInputs, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError
from limbeck.multimodal.diffusion.adapter import denoiser
from limbeck.multimodal.diffusion.methods._base import StepDistillation
from limbeck.multimodal.diffusion.samplers import class_labels, noise


@METHODS.register_module()
class Regression(StepDistillation):
    """The student's x0 at (ε, t_last) follows the teacher's whole DDIM sample from ε (Luhman and Luhman, eq. 8).

        loss = mean (x̂_S(ε, t_last) - x_T(ε))²

    The naive baseline of step distillation. `pairs` samples are made before the first step, half of the cost of the run
    as a rule, and drawn from again and again; no image is read.

    Args:
        pairs: (ε, x_T(ε)), with classes in turn.
        teacher_steps: of DDIM.
        seed: of the pairs' noise; val and test have other noise whatever it is.
        kwargs: see `StepDistillation`.
    Raises: ConfigError.
    """

    reads_images = False
    assumption: ClassVar[str] = "A fixed number of pairs, fewer than the paper's."

    def __init__(
        self, *, pairs: int = 1024, teacher_steps: int = 16, seed: int = 0, weight: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(weight=weight, **kwargs)
        if pairs < 1:
            raise ConfigError(f"Regression needs pairs of 1 or more; got {pairs}")
        self.pairs, self.seed, self.teacher_steps = pairs, seed, teacher_steps

    samples: Tensor
    ready: Tensor

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        super().connect(teacher_shapes, student_shapes)
        self.noise_schedule.trailing(self.teacher_steps)
        shape, classes = self.learner.image_shape, self.learner.num_classes
        self.noises = noise(self.pairs, shape, self.seed * 3, first=1 << 24)
        self.classes = None if classes is None else class_labels(self.pairs, classes)
        # In checkpoints, so that a resumed run makes no sample twice.
        self.register_buffer("samples", torch.zeros(self.pairs, *shape))
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        if not self.ready:
            self.samples.copy_(self.made(batch))
            self.ready.fill_(True)
        rows = torch.randint(self.pairs, (self.count(batch),), generator=self.generator(batch))
        z, labels = self.asked(rows)
        t = torch.full((len(rows),), self.noise_schedule.steps - 1, device=z.device)
        found = self.ask(batch, self.student, z, t, labels)
        return {"samples": (found - self.samples[rows.to(z.device)]).square().mean()}

    def asked(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Noise (B, C, H, W) and labels (B,) of these pairs."""
        device = self.samples.device
        return self.noises[rows].to(device), None if self.classes is None else self.classes[rows].to(device)

    @torch.no_grad()
    def made(self, batch: LinkInputs) -> Tensor:
        """x_T(ε) (pairs, C, H, W): DDIM steps of the teacher, clamped where the teacher clips."""
        grid = [*self.noise_schedule.trailing(self.teacher_steps).tolist(), -1]
        clip = denoiser(self.members[self.teachers[0]]).clip
        parts = []
        for rows in torch.arange(self.pairs).split(64):
            z, labels = self.asked(rows)
            for now, then in pairwise(grid):
                t = torch.full((len(z),), now, device=z.device)
                x0 = self.ask(batch, self.teachers[0], z, t, labels)
                z = self.noise_schedule.ddim(z, x0.clamp(-1, 1) if clip else x0, now, then)
            parts.append(z)
        return torch.cat(parts)
