"""Regression on the teacher's samples: a one-step student by plain supervision (arXiv 2101.02388)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from limbeck.engine.method import LinkInputs
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError
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
    assumption: ClassVar[str] = "a fixed number of pairs, fewer than the paper's"

    def __init__(
        self, *, pairs: int = 1024, teacher_steps: int = 16, seed: int = 0, weight: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(weight=weight, **kwargs)
        if pairs < 1:
            raise ConfigError(f"Regression needs pairs of 1 or more; got {pairs}")
        self.pairs, self.seed, self.teacher_steps = pairs, seed, teacher_steps
        self.samples: Tensor | None = None

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        device = next(self.learner.parameters()).device
        if self.samples is None:
            self.start = noise(self.pairs, self.learner.image_shape, self.seed * 3, first=1 << 24).to(device)
            count = self.learner.num_classes
            self.classes = None if count is None else class_labels(self.pairs, count).to(device)
            self.samples = self.made(batch)
        rows = torch.randint(self.pairs, (self.count(batch),), generator=batch.generator()).to(device)
        t = torch.full((len(rows),), self.schedule.steps - 1, device=device)
        labels = None if self.classes is None else self.classes[rows]
        found = self.ask(batch, self.student, self.start[rows], t, labels)
        return {"samples": (found - self.samples[rows]).square().mean()}

    @torch.no_grad()
    def made(self, batch: LinkInputs) -> Tensor:
        """x_T(ε) (pairs, C, H, W): DDIM steps of the teacher, clamped as its sampler clamps."""
        grid = [*self.schedule.trailing(self.teacher_steps).tolist(), -1]
        parts = []
        for rows in torch.arange(self.pairs).split(64):
            z = self.start[rows]
            labels = None if self.classes is None else self.classes[rows]
            for now, then in pairwise(grid):
                t = torch.full((len(z),), now, device=z.device)
                x0 = self.ask(batch, self.teachers[0], z, t, labels)
                z = self.schedule.ddim(z, x0.clamp(-1, 1) if self.learner.clip else x0, now, then)
            parts.append(z)
        return torch.cat(parts)
