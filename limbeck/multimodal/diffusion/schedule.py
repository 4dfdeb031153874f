"""Noise schedules on integer times, one DDIM step, and the conversions between ε, x0 and v.

Times are those of diffusers: i in {0 … T − 1} with alphas_cumprod[i], and −1 is the clean image. Variance preserving:
z = α x + σ ε with α² + σ² = 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from limbeck.engine.registry import require
from limbeck.errors import ConfigError, UnknownName

PredictionKind = Literal["v_prediction", "epsilon", "sample"]  # diffusers' names; 'sample' is x0
PREDICTIONS: tuple[str, ...] = get_args(PredictionKind)
CLEAN = -1
FLOOR = 2.0**-24  # of alphas_cumprod: diffusers' own choice where the last would be 0
DEFAULT_STEPS = 1600  # T; divisible by 50 and by every power of 2 up to 64

Times = int | Tensor


class NoiseSchedule:
    """How much signal and noise there is at each time; immutable, and on the device of what it is asked.

    `alpha`, `sigma`, `snr` and `log_ratio` take integer times (B,) or one int, and give (B, 1, 1, 1) or (1, 1, 1, 1)
    in `dtype`, on the device of the times: they broadcast over images (B, C, H, W); `.flatten()` makes them (B,).
    Tables are kept in float64. On the CPU times outside −1 … T − 1 raise ConfigError.

    Args:
        alphas_cumprod: (T,), α² at times 0 … T − 1, in (0, 1) and never rising.
    Raises: ConfigError.
    """

    def __init__(self, alphas_cumprod: Tensor | Sequence[float]) -> None:
        kept = torch.as_tensor(alphas_cumprod).detach().to("cpu", torch.float64).clone()
        if (
            kept.ndim != 1
            or not len(kept)
            or not bool(((kept > 0) & (kept < 1)).all())
            or bool((kept.diff() > 0).any())
        ):
            raise ConfigError("alphas_cumprod of a noise schedule is (T,), between 0 and 1 and never rising")
        self.alphas_cumprod = kept
        whole = torch.cat([torch.ones(1, dtype=torch.float64), kept])  # entry i + 1 is time i, entry 0 the clean image
        self._alpha, self._sigma = whole.sqrt(), (1 - whole).sqrt()

    @classmethod
    def cosine(cls, steps: int = DEFAULT_STEPS) -> NoiseSchedule:
        """α = cos(π/2 · (i + 1) / T), with α² clipped from below at 2⁻²⁴; its only effect is on the last time."""
        if not isinstance(steps, int) or steps < 1:
            raise ConfigError(f"a cosine schedule has 1 step or more; got {steps!r}")
        angle = torch.arange(1, steps + 1, dtype=torch.float64) * (math.pi / 2 / steps)
        return cls(angle.cos().square().clamp(min=FLOOR))

    @classmethod
    def of_scheduler(cls, scheduler: Any) -> NoiseSchedule:
        """That of a diffusers scheduler, or of its config (`_class_name` says of which one; else DDPMScheduler).

        A terminal α² of 0 (`rescale_betas_zero_snr`) becomes 2⁻²⁴, as in diffusers' Euler and DPM-Solver schedulers, or
        what comes before it where that is less; their values rise there.

        Raises: ExtraMissing; UnknownName; ConfigError for one that is not variance preserving, such as EDM's.
        """
        if isinstance(scheduler, Mapping):
            config = dict(scheduler)
            kind = _scheduler_class(str(config.get("_class_name", "DDPMScheduler")))
            scheduler = _build_scheduler(kind, lambda: kind.from_config(config))
        found = getattr(scheduler, "alphas_cumprod", None)
        if found is None:
            raise ConfigError(
                f"{type(scheduler).__name__} has no alphas_cumprod: it is not variance preserving on integer times; "
                "name a scheduler such as DDPMScheduler, under which the model was trained"
            )
        values = torch.as_tensor(found).to(torch.float64)
        least = values[values > 0].min().clamp(max=FLOOR)
        return cls(torch.where(values > 0, values, least))

    @property
    def steps(self) -> int:
        """T."""
        return len(self.alphas_cumprod)

    def same_as(self, other: NoiseSchedule) -> bool:
        """Whether both have the same values, so that a z of one can be handed to the other."""
        return torch.equal(self.alphas_cumprod, other.alphas_cumprod)

    def betas(self) -> Tensor:
        """(T,) float64: 1 − alphas_cumprod[i] / alphas_cumprod[i − 1]."""
        whole = self._alpha.square()
        return 1 - whole[1:] / whole[:-1]

    def alpha(self, t: Times, dtype: torch.dtype = torch.float32) -> Tensor:
        """Factor of the image, in (0, 1]; 1 at time −1."""
        return self._look(self._alpha, t, dtype)

    def sigma(self, t: Times, dtype: torch.dtype = torch.float32) -> Tensor:
        """Factor of the noise, in [0, 1); 0 at time −1."""
        return self._look(self._sigma, t, dtype)

    def snr(self, t: Times, dtype: torch.dtype = torch.float32) -> Tensor:
        """α² / σ²; infinite at time −1."""
        return self._look((self._alpha / self._sigma).square(), t, dtype)

    def log_ratio(self, t: Times, dtype: torch.dtype = torch.float32) -> Tensor:
        """λ = log(σ / α), growing with time; −∞ at time −1."""
        return self._look(self._sigma.log() - self._alpha.log(), t, dtype)

    def add_noise(self, x: Tensor, noise: Tensor, t: Times) -> Tensor:
        """z = α x + σ ε, (B, C, H, W) in the dtype of `x`."""
        t = times_like(t, x)
        return self.alpha(t, x.dtype) * x + self.sigma(t, x.dtype) * noise

    def ddim(self, z: Tensor, x0: Tensor, t: Times, s: Times) -> Tensor:
        """The deterministic DDIM step from time t to s (arXiv 2010.02502, eq. 12 with η = 0); `x0` at s = −1.

        z_s = (σ_s/σ_t) z + (α_s − α_t σ_s/σ_t) x0, with factors in float64; differentiable in z and x0.

        Args:
            z, x0: (B, C, H, W). t: 0 or more. s: −1 or more; usually s < t.
        Raises: ConfigError for t = −1, on the CPU.
        """
        t, s = times_like(t, z), times_like(s, z)
        if t.device.type == "cpu" and bool((t == CLEAN).any()):
            raise ConfigError("a DDIM step starts from a noisy image: its time t is 0 or more; got -1")
        wide = torch.float64
        ratio = self.sigma(s, wide) / self.sigma(t, wide)
        return ratio.to(z.dtype) * z + (self.alpha(s, wide) - self.alpha(t, wide) * ratio).to(z.dtype) * x0

    def trailing(self, steps: int) -> Tensor:
        """(steps,) int64: T − 1, T − 1 − T/steps, …, T/steps − 1, diffusers' 'trailing' spacing; −1 follows the last.

        The times of N steps are every second of those of 2N.

        Raises: ConfigError for steps below 1 or that do not divide T.
        """
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise ConfigError(f"a sampler takes 1 step or more; got steps={steps!r}")
        if self.steps % steps:
            raise ConfigError(
                f"{steps} sampling steps do not divide the schedule's {self.steps}; choose a divisor of {self.steps}"
            )
        return torch.arange(self.steps, 0, -(self.steps // steps)) - 1

    def _look(self, table: Tensor, t: Times, dtype: torch.dtype) -> Tensor:
        index = torch.as_tensor(t)
        if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
            raise ConfigError(f"times of a noise schedule are integers; got {index.dtype}")
        if index.device.type == "cpu" and bool(((index < CLEAN) | (index >= self.steps)).any()):
            raise ConfigError(f"times of this noise schedule are -1 … {self.steps - 1}; got {index.tolist()}")
        return table.to(dtype).to(index.device)[index.long() + 1].reshape(-1, 1, 1, 1)


def times_like(t: Times, z: Tensor) -> Tensor:
    """Times (B,) on the device of `z`, whether one int or a tensor was given."""
    found = torch.as_tensor(t, device=z.device)
    return found.expand(len(z)) if found.ndim == 0 else found


def schedule_of(config: Mapping[str, Any] | NoiseSchedule) -> NoiseSchedule:
    """A schedule from `dict(type='cosine', steps=1600)`, or a diffusers scheduler's class name and arguments.

    Raises: ConfigError, UnknownName; ExtraMissing.
    """
    if isinstance(config, NoiseSchedule):
        return config
    args = dict(config)
    kind = args.pop("type", None)
    if kind == "cosine":
        extra = args.keys() - {"steps"}
        if extra:
            raise UnknownName("key of schedule cosine:", sorted(extra)[0], ["steps"])
        return NoiseSchedule.cosine(**args)
    if kind is None:
        raise ConfigError(f"a schedule config needs a 'type': 'cosine' or a scheduler of diffusers; got {sorted(args)}")
    scheduler = _scheduler_class(str(kind))
    return NoiseSchedule.of_scheduler(_build_scheduler(scheduler, lambda: scheduler(**args)))


def _scheduler_class(name: str) -> Any:
    diffusers = require("diffusers", "a diffusion model", "diffusion")
    names = [n for n in dir(diffusers) if n.endswith("Scheduler")]
    if name not in names:
        raise UnknownName("scheduler of diffusers", name, ["cosine", *names], "as schedule")
    return getattr(diffusers, name)


def _build_scheduler(kind: Any, build: Any) -> Any:
    try:
        return build()
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ConfigError(f"{kind.__name__} of diffusers does not take these arguments: {error}") from error


# --- conversions; α and σ as `NoiseSchedule` gives them, α² + σ² = 1 ---


def to_x0(output: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor, prediction: PredictionKind) -> Tensor:
    """x0 from what a network predicts: α z − σ v, or (z − σ ε) / α.

    Args:
        output, z: (B, C, H, W), the network's output at the noisy image z. alpha, sigma: (B, 1, 1, 1).
        prediction: what `output` is.
    Raises: UnknownName for another prediction.
    """
    check_prediction(prediction)
    if prediction == "sample":
        return output
    return alpha * z - sigma * output if prediction == "v_prediction" else (z - sigma * output) / alpha


def to_epsilon(output: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor, prediction: PredictionKind) -> Tensor:
    """ε: σ z + α v, or (z − α x0) / σ, which is not defined at time −1; arguments as for `to_x0`."""
    check_prediction(prediction)
    if prediction == "epsilon":
        return output
    return sigma * z + alpha * output if prediction == "v_prediction" else (z - alpha * output) / sigma


def to_v(output: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor, prediction: PredictionKind) -> Tensor:
    """v = α ε − σ x0 (arXiv 2202.00512, §4): (ε − σ z) / α, or (α z − x0) / σ; arguments as for `to_x0`."""
    check_prediction(prediction)
    if prediction == "v_prediction":
        return output
    return (output - sigma * z) / alpha if prediction == "epsilon" else (alpha * z - output) / sigma


def check_prediction(prediction: str) -> None:
    """Raises: UnknownName unless it is one of `PREDICTIONS`."""
    if prediction not in PREDICTIONS:
        raise UnknownName("prediction", prediction, PREDICTIONS)
