"""Consistency distillation: neighbours on a teacher's path get one answer (arXiv 2303.01469)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from limbeck.engine.cost import evaluating
from limbeck.engine.method import LinkInputs, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, UnknownName
from limbeck.multimodal.diffusion.methods._base import StepDistillation, per_image

DISTANCES = ("pseudo-huber", "l2", "l1")


@METHODS.register_module()
class ConsistencyDistillation(StepDistillation):
    """f(z_t, t) of the student follows f⁻(ẑ_s, s) of its moving average, ẑ_s a step of the teacher on the path of z_t.

        k uniform in 1 … N, t = t_k, s = t_{k-1}, z_t = α_t x + σ_t ε,  ẑ_s = DDIM_T(z_t, t → s)
        loss = mean_B d(f(z_t, t), f⁻(ẑ_s, s)),   f(z, -1) = z

    (Song et al., algorithm 2). ASSUMPTION (variance preserving, where the paper's is exploding): f is the denoiser's
    x0, α z - σ v of a v-network, which is z at the clean end, so that the boundary holds without scalings of its own.

    Args:
        intervals: N, dividing the schedule's times; ASSUMPTION for small images: 16, where the paper has 18 to 40.
        distance: 'pseudo-huber' √(‖a - b‖² + c²) - c over all values of an image; 'l2' and 'l1' mean over them.
        huber: c = huber · √(C H W); ASSUMPTION 0.03, arXiv 2310.14189 has 0.00054.
        heun: two teacher calls a step, the second at its end, averaged, as the paper's solver; False is DDIM alone.
        target: the member that gives f⁻, an 'ema' of the student, or the student itself, without graph; with the
            student's own dropout mask, as the official code has it.
        clip_targets: clamp the teacher's x0 to [-1, 1].
        kwargs: see `StepDistillation`; name the target in `teacher` too: teacher=['teacher', 'target'].
    Raises: ConfigError, UnknownName.
    """

    many_teachers = True
    assumption: ClassVar[str] = "The student is the denoiser's x0, in a variance-preserving form."

    def __init__(
        self,
        *,
        intervals: int = 16,
        distance: str = "pseudo-huber",
        huber: float = 0.03,
        heun: bool = False,
        target: str = "student",
        clip_targets: bool = False,
        weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight=weight, **kwargs)
        if distance not in DISTANCES:
            raise UnknownName("distance", distance, DISTANCES, "of ConsistencyDistillation")
        if intervals < 1 or huber <= 0:
            raise ConfigError(f"intervals is 1 or more and huber above 0; got {intervals} and {huber}")
        if target not in (self.student, *self.teachers[1:]):
            raise ConfigError(
                f"target {target!r} is neither the student nor a further teacher of the link; set "
                f"teacher=['teacher', {target!r}]"
            )
        self.intervals, self.distance, self.huber, self.heun = intervals, distance, huber, heun
        self.target, self.clip_targets = target, clip_targets

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        super().connect(teacher_shapes, student_shapes)
        self.noise_schedule.trailing(self.intervals)

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        x, draw = self.images(batch), self.generator(batch)
        grid = self.noise_schedule.trailing(self.intervals)
        t = grid[torch.randint(self.intervals, (len(x),), generator=draw)].to(x.device)
        s = t - self.noise_schedule.steps // self.intervals
        labels = self.labels(batch, draw)
        z = self.noise_schedule.add_noise(x, self.noise(batch, draw), t)
        state = random_state(z)
        answer = self.ask(batch, self.student, z, t, labels)
        with torch.no_grad():
            moved = self.step(batch, z, t, s, labels)
            with repeated(state, z), mode_of(self.members[self.target], self.learner):
                followed = self.consistent(batch, moved, s, labels)
        return {"consistency": self.apart(answer, followed).mean()}

    def step(self, batch: LinkInputs, z: Tensor, t: Tensor, s: Tensor, labels: Tensor | None) -> Tensor:
        """The teacher's step (B, C, H, W) from z at t to s."""
        x0 = self.of_teacher(batch, z, t, labels)
        moved = self.noise_schedule.ddim(z, x0, t, s)
        if not self.heun:
            return moved
        again = self.of_teacher(batch, moved, s.clamp(min=0), labels)
        # At the clean end there is no second answer.
        mixed = torch.where((s < 0).reshape(-1, 1, 1, 1), x0, (x0 + again) / 2)
        return self.noise_schedule.ddim(z, mixed, t, s)

    def consistent(self, batch: LinkInputs, z: Tensor, s: Tensor, labels: Tensor | None) -> Tensor:
        """f⁻(z, s) (B, C, H, W); z itself at s = -1, exactly."""
        found = self.ask(batch, self.target, z, s.clamp(min=0), labels)
        return torch.where((s < 0).reshape(-1, 1, 1, 1), z, found)

    def apart(self, a: Tensor, b: Tensor) -> Tensor:
        """d(a, b), (B,)."""
        if self.distance == "l1":
            return per_image((a - b).abs())
        squared = (a - b).square()
        if self.distance == "l2":
            return per_image(squared)
        c = self.huber * squared[0].numel() ** 0.5
        return (squared.flatten(1).sum(1) + c * c).sqrt() - c


def random_state(like: Tensor) -> list[Tensor]:
    """Of torch's global generators, on which dropout on the device of `like` draws."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(like.device)] if like.is_cuda else [])]


@contextmanager
def repeated(state: list[Tensor], like: Tensor) -> Iterator[None]:
    """Draw again what was drawn after `random_state(like)`, and go on afterwards as if nothing had been."""
    with torch.random.fork_rng(devices=[like.device] if like.is_cuda else []):
        torch.set_rng_state(state[0])
        for of_device in state[1:]:
            torch.cuda.set_rng_state(of_device, like.device)
        yield


@contextmanager
def mode_of(model: nn.Module, other: nn.Module) -> Iterator[None]:
    """`model` in the mode, training or not, of `other`; its modules get their own back afterwards."""
    if model is other:
        yield
        return
    with evaluating(model):
        model.train(other.training)
        yield
