"""Sampling by the schedulers of diffusers, under a denoiser's own noise schedule; noise with a seed for every image."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from limbeck.engine.cost import evaluating
from limbeck.engine.registry import require
from limbeck.errors import ConfigError, UnknownName, UserError
from limbeck.multimodal.diffusion.denoiser import Denoiser
from limbeck.multimodal.diffusion.schedule import NoiseSchedule

KINDS = ("ddim", "dpm-solver", "euler", "consistency")


@dataclass(eq=False)
class Samples:
    """What a sampler made.

    images: (B, C, H, W), in [−1, 1] where it clamps; still noisy where it was stopped before the end.
    calls: network calls for one image; a guided step is two.
    times: (N,) int64, the time of each step.
    x0s: (N, B, C, H, W), what the model believed the final image to be at each step, after guidance and clamping, where
        it was recorded: DT-Visualization of arXiv 2503.10637.
    """

    images: Tensor
    calls: int
    times: Tensor
    x0s: Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence[Samples]) -> Samples:
        """Those of several batches, in order, as one."""
        x0s = [part.x0s for part in parts if part.x0s is not None]
        images = torch.cat([part.images for part in parts])
        return cls(images, parts[0].calls, parts[0].times, torch.cat(x0s, dim=1) if x0s else None)


@dataclass(frozen=True)
class Sampler:
    """A scheduler of diffusers with a number of steps; 'trailing' times, so that the first one is T − 1.

    The denoiser's prediction is turned into x0, guided and clamped here, and the scheduler is told that the network
    predicts x0: so clamping means the same for every kind (ε follows from the clamped x0, as in progressive
    distillation's code), though only DDIM's scheduler knows how to clamp. The scheduler's alphas_cumprod, which
    diffusers multiplies up from betas in float32, are replaced by the denoiser's own in float64.

    Args:
        kind: 'ddim'; 'dpm-solver' (second-order DPM-Solver++, arXiv 2211.01095); 'euler'; 'consistency' (x0, then
            noise anew to the next time, as consistency and DMD students do; arXiv 2303.01469, algorithm 1).
        steps: N, a divisor of the schedule's T; the network is called N times, 2N with guidance.
        guidance: w, 1 is the plain conditional model; see `Denoiser.predict`.
        clip: clamp x0 to [−1, 1]; None does as the denoiser says.
        eta: of DDIM; 0 is deterministic, 1 has DDPM's variance.
    Raises: UnknownName, ConfigError.
    """

    kind: str = "ddim"
    steps: int = 50
    guidance: float = 1.0
    clip: bool | None = None
    eta: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnknownName("sampler", self.kind, KINDS)
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 1:
            raise ConfigError(f"a sampler takes 1 step or more; got steps={self.steps!r}")
        if not math.isfinite(self.guidance):
            raise ConfigError(f"guidance is a finite number; got {self.guidance}")
        if not 0.0 <= self.eta <= 1.0 or (self.eta and self.kind != "ddim"):
            raise ConfigError(f"eta is in [0, 1], and of sampler 'ddim' alone; got {self.eta} for {self.kind!r}")

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise on the way and so needs `generators`."""
        return self.eta > 0 or (self.kind == "consistency" and self.steps > 1)

    def sample(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        labels: Tensor | None = None,
        *,
        generators: Sequence[torch.Generator] | None = None,
        record: bool = False,
        batch_size: int | None = None,
    ) -> Samples:
        """Images from noise (B, C, H, W), as `noise` draws it; without gradients, in eval mode.

        Args:
            labels: (B,); see `Denoiser.forward`.
            generators: one an image, where the sampler is stochastic; see the function `generators`.
            record: keep x0s.
            batch_size: images a network call; all where not given. Noise does not depend on it.
        Raises: ConfigError; UserError where the network gives NaN or infinity.
        """
        size = len(noise) if batch_size is None else batch_size
        if size < 1:
            raise ConfigError(f"sampling needs images and a batch_size of 1 or more; got {len(noise)} and {batch_size}")
        parts = [
            self.run(
                denoiser,
                noise[start : start + size],
                None if labels is None else labels[start : start + size],
                generators=None if generators is None else generators[start : start + size],
                record=record,
            )
            for start in range(0, len(noise), size)
        ]
        return Samples.joined(parts)

    @torch.no_grad()
    def run(
        self,
        denoiser: Denoiser,
        z: Tensor,
        labels: Tensor | None = None,
        *,
        first: int = 0,
        last: int | None = None,
        generators: Sequence[torch.Generator] | None = None,
        record: bool = False,
    ) -> Samples:
        """Steps `first` … `last` − 1 of the sampler, from z at the time of step `first` to that of step `last`.

        Raises: as `sample`.
        """
        times = denoiser.schedule.trailing(self.steps)
        last = self.steps if last is None else last
        if not 0 <= first <= last <= self.steps:
            raise ConfigError(f"a sampler of {self.steps} steps cannot run from step {first} to {last}")
        options = self._options(len(z), generators)
        scheduler = self.scheduler(denoiser.schedule)
        if first and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        x0s, before = [], denoiser.calls
        state = z * self._scale(scheduler, first)
        with evaluating(denoiser):
            for index in range(first, last):
                now = scheduler.timesteps[index]
                x0 = self.x0(denoiser, scheduler.scale_model_input(state, now), int(times[index]), labels)
                state = scheduler.step(x0, now, state, **options).prev_sample
                if record:
                    x0s.append(x0)
        kept = (torch.stack(x0s) if x0s else z.new_empty((0, *z.shape))) if record else None
        return Samples(state / self._scale(scheduler, last), denoiser.calls - before, times[first:last], kept)

    def x0(self, denoiser: Denoiser, z: Tensor, t: int, labels: Tensor | None = None) -> Tensor:
        """The denoiser's x0 at one time (B, C, H, W), guided and clamped as this sampler does.

        Raises: UserError where it is NaN or infinite.
        """
        return self.checked(denoiser, denoiser.predict(z, t, labels, self.guidance).x0, t)

    def checked(self, denoiser: Denoiser, x0: Tensor, t: int) -> Tensor:
        """`x0` (B, C, H, W) clamped as this sampler does. Raises: UserError where it is NaN or infinite."""
        if not bool(torch.isfinite(x0).all()):
            raise UserError(
                f"sampling stopped at time {t}: the network gives NaN or infinity; check its weights and prediction"
            )
        return x0.clamp(-1, 1) if (denoiser.clip if self.clip is None else self.clip) else x0

    def scheduler(self, schedule: NoiseSchedule) -> Any:
        """A scheduler of diffusers that takes x0, its timesteps set, and with a state of its own.

        Raises: ExtraMissing; ConfigError for steps that do not divide the schedule's.
        """
        schedule.trailing(self.steps)
        # What a scheduler remembers from step to step is made anew by `set_timesteps`; its tables are never written to.
        made = copy(_scheduler(self.kind, schedule))
        # With it the times of a consistency sampler are the trailing ones.
        extra = {"original_inference_steps": schedule.steps} if self.kind == "consistency" else {}
        made.set_timesteps(self.steps, **extra)
        return made

    def _options(self, batch: int, generators: Sequence[torch.Generator] | None) -> dict[str, Any]:
        """Further arguments of the scheduler's step."""
        if not self.stochastic:
            return {}
        if generators is None or len(generators) != batch:
            count = "none" if generators is None else len(generators)
            raise ConfigError(
                f"this {self.kind} sampler draws noise: give one generator for each of {batch} images; got {count}"
            )
        return {"generator": list(generators), **({"eta": self.eta} if self.eta else {})}

    def _scale(self, scheduler: Any, index: int) -> Any:
        """What z is multiplied by in the scheduler's own variable at a step: Euler's is z / α.

        diffusers' pipelines start Euler at σ/α times the noise, which leaves out the little signal at T − 1. Dividing
        by α instead gives every kind the same z.
        """
        return (scheduler.sigmas[index] ** 2 + 1) ** 0.5 if self.kind == "euler" else 1.0


@lru_cache(maxsize=16)
def _scheduler(kind: str, schedule: NoiseSchedule) -> Any:
    """A scheduler of diffusers before its timesteps are set: kept, for every batch that is sampled asks for one.

    Raises: ExtraMissing.
    """
    diffusers = require("diffusers", "sampling from a diffusion model", "diffusion")
    common: dict[str, Any] = dict(
        num_train_timesteps=schedule.steps,
        trained_betas=schedule.betas().tolist(),
        prediction_type="sample",
        timestep_spacing="trailing",
    )
    if kind == "ddim":
        made = diffusers.DDIMScheduler(**common, clip_sample=False, set_alpha_to_one=True)
    elif kind == "dpm-solver":
        made = diffusers.DPMSolverMultistepScheduler(**common, algorithm_type="dpmsolver++", solver_order=2)
    elif kind == "euler":
        made = diffusers.EulerDiscreteScheduler(**common)
    else:
        made = diffusers.LCMScheduler(**common, clip_sample=False)
        # Of a latent consistency model's c_skip and c_out: our students' x0 is what the next step starts from.
        made.get_scalings_for_boundary_condition_discrete = lambda timestep: (0.0, 1.0)
    made.alphas_cumprod = schedule.alphas_cumprod.clone()
    return made


# --- where sampling starts ---


def generators(count: int, seed: int, *, first: int = 0, stream: str = "steps") -> list[torch.Generator]:
    """CPU generators of images `first` … `first` + count − 1: image k of a seed has its own, whatever the batch.

    No two images of one seed and stream share numbers.

    Args:
        stream: 'noise' is where `noise` draws from; another for what is drawn on the way.
    """
    if count < 1 or first < 0:
        raise ConfigError(f"count of images is 1 or more, and the first is 0 or more; got {count} and {first}")
    start = int.from_bytes(hashlib.sha256(f"{seed}/{stream}".encode()).digest()[:4], "big")
    # torch's CPU generator reads 32 bits of a seed.
    return [torch.Generator().manual_seed((start + first + k) % 2**32) for k in range(count)]


def noise(count: int, shape: Sequence[int], seed: int, *, first: int = 0) -> Tensor:
    """Standard normal noise (count, C, H, W) in float32 on the CPU; image k of a seed is the same whatever the batch.

    Args:
        shape: (C, H, W), `Denoiser.image_shape`. first: index of the first image.
    """
    return torch.stack([torch.randn(*shape, generator=g) for g in generators(count, seed, first=first, stream="noise")])


def class_labels(count: int, num_classes: int, *, first: int = 0) -> Tensor:
    """Labels (count,) int64 that go round the classes: image k has class k mod K."""
    if count < 1 or num_classes < 1 or first < 0:
        raise ConfigError(f"labels need 1 image and 1 class or more, from 0 on; got {count}, {num_classes} and {first}")
    return torch.arange(first, first + count) % num_classes
