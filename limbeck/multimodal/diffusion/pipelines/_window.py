"""Some steps of a diffusers scheduler, put in its place in a pipeline: the pipeline then makes these steps alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import ConfigError
from limbeck.multimodal.diffusion.schedule import NoiseSchedule

Done = Callable[[], None]


class SchedulerWindow:
    """Steps `first` … `last` − 1 of a scheduler; anything else asked of it is the scheduler's own.

    The schedulers of diffusers know which step they are at, but its pipelines always make all of them.

    Args:
        scheduler: copied, never changed.
        given: the latent is handed to the pipeline as this scheduler has it at step `first`; where False the pipeline
            draws noise, and scales it as the scheduler says.
        record: keep what each step predicts.
        done: called after each step.
    Attributes:
        x0s: (B, C, h, w) each, the image that each step predicted, where recorded.
        before: (B, C, h, w), what the last step got, in the scheduler's own scaling, where recorded.
    """

    def __init__(
        self, scheduler: Any, first: int, last: int, *, given: bool, record: bool = False, done: Done | None = None
    ) -> None:
        self._inner = copy.deepcopy(scheduler)
        self._first, self._last, self._given, self._record, self._done = first, last, given, record, done
        self.x0s: list[Tensor] = []
        self.before: Tensor | None = None
        # The pipelines read the signatures of these two to see what they take.
        self.step = _looking_like(self._inner.step, self._step)
        self.set_timesteps = _looking_like(self._inner.set_timesteps, self._set_timesteps)
        if hasattr(self._inner, "set_begin_index"):  # not DDIM's
            self.set_begin_index = lambda index=0: self._inner.set_begin_index(first + index)

    def __getattr__(self, name: str) -> Any:
        if name == "_inner":  # while it is being copied
            raise AttributeError(name)
        return getattr(self._inner, name)

    @property
    def timesteps(self) -> Tensor:
        """Times of these steps."""
        return self._inner.timesteps[self._first : self._last]

    @property
    def init_noise_sigma(self) -> Any:
        """What a pipeline multiplies its latents by at the start."""
        return 1.0 if self._given else self._inner.init_noise_sigma

    def _set_timesteps(self, *args: Any, **options: Any) -> None:
        self._inner.set_timesteps(*args, **options)
        if self._first and hasattr(self, "set_begin_index"):  # StableDiffusionPipeline does not say it itself
            self.set_begin_index()

    def _step(self, output: Tensor, time: Any, sample: Tensor, *args: Any, **options: Any) -> tuple[Tensor, ...]:
        options["return_dict"] = True
        made = self._inner.step(output, time, sample, *args, **options)
        if self._record:
            x0 = made.get("pred_original_sample", made.get("denoised"))  # the latter is LCM's name
            if x0 is None:
                raise ConfigError(
                    f"{type(self._inner).__name__} does not say which image it predicts; give the pipeline "
                    "DDIMScheduler, EulerDiscreteScheduler or LCMScheduler"
                )
            self.x0s.append(x0.to(sample.dtype))
            self.before = sample
        if self._done is not None:
            self._done()
        return (made.prev_sample,)


def _looking_like(shown: Callable[..., Any], called: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is called as one, with the signature of another."""

    @wraps(shown)
    def both(*args: Any, **options: Any) -> Any:
        return called(*args, **options)

    return both


@dataclass(eq=False)
class Plan:
    """A scheduler with its steps, before any is made.

    scheduler: a copy with its timesteps. times: of each step. schedule: its noise, by whole times.
    """

    scheduler: Any
    times: list[float]
    schedule: NoiseSchedule

    @classmethod
    def of(cls, scheduler: Any, steps: int, whose: str) -> Plan:
        """Raises: ConfigError for steps that it does not make, or a scheduler that calls the network more often."""
        kind = type(scheduler).__name__
        planned = copy.deepcopy(scheduler)
        try:
            planned.set_timesteps(steps)
        except (ValueError, ZeroDivisionError) as error:
            raise ConfigError(f"{kind} of the {whose} does not make {steps} steps: {error}") from error
        times = [float(t) for t in planned.timesteps]
        if len(times) != steps:
            raise ConfigError(
                f"{kind} of the {whose} makes {steps} steps by {len(times)} network calls: a hand-over wants one call "
                "a step, as DDIMScheduler or EulerDiscreteScheduler make"
            )
        return cls(planned, times, NoiseSchedule.of_scheduler(planned))

    def to_z(self, index: int) -> float:
        """What this scheduler's latent at a step is multiplied by to be z = α x + σ ε; Euler's is 1 / √(s² + 1).

        That is how it scales the network's input: networks of every scheduler are fed the same z.
        """
        probe = copy.deepcopy(self.scheduler)  # asking makes it remember the step
        if hasattr(probe, "set_begin_index"):
            probe.set_begin_index(index)
        return float(probe.scale_model_input(torch.ones(1, dtype=torch.float64), probe.timesteps[index]))

    def whole_time(self, index: int) -> int:
        """The time of a step. Raises: ConfigError where it is none of the noise schedule's, or its noise is not."""
        time = self.times[index]
        kind = type(self.scheduler).__name__
        if time != int(time):
            raise ConfigError(
                f"{kind} is at time {time:g} at step {index}, between two of its noise schedule; set its "
                "timestep_spacing to 'trailing'"
            )
        sigmas = getattr(self.scheduler, "sigmas", None)
        ratio = float(self.schedule.log_ratio(int(time), torch.float64).exp())
        if sigmas is not None and abs(float(sigmas[index]) - ratio) > 1e-3 * ratio:
            raise ConfigError(
                f"{kind} has noise {float(sigmas[index]):g} at time {time:g}, where its schedule has {ratio:g}; set "
                "use_karras_sigmas and the like to False, or hand over with meet='nearest'"
            )
        return int(time)
