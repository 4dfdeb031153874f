"""A network, its noise schedule and what it predicts: the one form in which methods and samplers see a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from limbeck.engine.inputs import describe
from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.multimodal.diffusion.schedule import (
    NoiseSchedule,
    PredictionKind,
    Times,
    check_prediction,
    times_like,
    to_epsilon,
    to_v,
    to_x0,
)


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a denoiser says of a noisy image, (B, C, H, W) each; converted when first asked for, never clamped.

    output: the network's, after guidance. z: the noisy image. alpha, sigma: (B, 1, 1, 1). kind: what `output` is.
    """

    output: Tensor
    z: Tensor
    alpha: Tensor
    sigma: Tensor
    kind: PredictionKind

    @cached_property
    def x0(self) -> Tensor:
        """The clean image."""
        return to_x0(self.output, self.z, self.alpha, self.sigma, self.kind)

    @cached_property
    def epsilon(self) -> Tensor:
        """The noise."""
        return to_epsilon(self.output, self.z, self.alpha, self.sigma, self.kind)

    @cached_property
    def v(self) -> Tensor:
        """α ε − σ x0."""
        return to_v(self.output, self.z, self.alpha, self.sigma, self.kind)


class Denoiser(nn.Module):
    """A diffusion model: `network(z, t, class_labels=…)` as in diffusers, under a noise schedule.

    `normalization` and `input_size` are set as on every model: pixels in [0, 1] become [−1, 1].

    `calls` counts network calls, one each forward whatever the batch, two with guidance; it is a plain attribute, to be
    read before and after, and no part of the state.

    Args:
        network: (B, C, H, W) and times (B,) to the same shape, as a tensor or as `.sample`; takes `class_labels` (B,)
            where there are classes.
        schedule: of its times.
        prediction: what the output is: 'v_prediction', 'epsilon' or 'sample' (x0).
        num_classes: K; labels are 0 … K − 1, and K is the null class. None is an unconditional network.
        image_size: side, or (height, width), in pixels.
        channels: C.
        clip: whether samplers clamp x0 to [−1, 1] unless they are told: True for pixels, False for latents.
        null_class: False where the network was trained without one; then labels are needed, and there is no guidance.
    Raises: UnknownName, ConfigError.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        prediction: PredictionKind = "v_prediction",
        num_classes: int | None = None,
        image_size: int | Sequence[int] = 28,
        channels: int = 1,
        clip: bool = True,
        null_class: bool = True,
    ) -> None:
        super().__init__()
        check_prediction(prediction)
        if num_classes is not None and num_classes < 1:
            raise ConfigError(
                f"num_classes of a denoiser is 1 or more, or None for an unconditional one; got {num_classes}"
            )
        self.network = network
        self.schedule = schedule
        self.prediction: PredictionKind = prediction
        self.num_classes = num_classes
        self.has_null = num_classes is not None and null_class
        self.clip = clip
        self.calls = 0
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.image_shape = (channels, height, width)
        describe(self, 0.5, 0.5, self.image_shape)

    @property
    def null_label(self) -> int:
        """The label that stands for no class. Raises: ConfigError where there is none."""
        if self.num_classes is None or not self.has_null:
            raise ConfigError(f"{self._name} has no null class; use guidance 1, and labels where it has classes")
        return self.num_classes

    def forward(self, z: Tensor, t: Times, labels: Tensor | None = None) -> Tensor:
        """The network's own output (B, C, H, W).

        Args:
            z: noisy images (B, C, H, W).
            t: times, (B,) int64 or one int.
            labels: (B,) int64 in 0 … K, K the null class; None is the null class for all.
        Raises: ShapeMismatch; ConfigError for labels that do not fit.
        """
        if tuple(z.shape[1:]) != self.image_shape:
            raise ShapeMismatch(
                f"{self._name} takes images (B, {', '.join(map(str, self.image_shape))}); got {tuple(z.shape)}"
            )
        t = times_like(t, z)
        self.calls += 1
        if self.num_classes is None:
            if labels is not None:
                raise ConfigError(f"{self._name} is unconditional: it takes no labels; leave them out")
            found = self.network(z, t)
        else:
            found = self.network(z, t, class_labels=self._labels(labels, z))
        return found if isinstance(found, Tensor) else found.sample

    def predict(self, z: Tensor, t: Times, labels: Tensor | None = None, guidance: float = 1.0) -> Prediction:
        """x0, ε and v, with classifier-free guidance (arXiv 2207.12598): null + w (conditional − null).

        That is taken of the network's output; x0, ε and v are affine in each other at one z, so it holds for all.
        Guidance 1 is the conditional network alone; another runs both halves in one batch of 2B and counts two calls.

        Raises: as `forward`; ConfigError for guidance other than 1 without labels or null class.
        """
        t = times_like(t, z)
        if guidance == 1.0:
            output = self(z, t, labels)
        else:
            null = self.null_label
            if labels is None:
                raise ConfigError(f"guidance {guidance} needs labels: without them there is nothing to guide to")
            labels = self._labels(labels, z)
            halves = self(torch.cat([z, z]), torch.cat([t, t]), torch.cat([labels, torch.full_like(labels, null)]))
            self.calls += 1
            conditional, unconditional = halves.chunk(2)
            output = unconditional + guidance * (conditional - unconditional)
        alpha, sigma = self.schedule.alpha(t, z.dtype), self.schedule.sigma(t, z.dtype)
        return Prediction(output.to(z.dtype), z, alpha, sigma, self.prediction)

    def without_some(
        self, labels: Tensor | None, share: float, generator: torch.Generator | None = None
    ) -> Tensor | None:
        """Labels (B,), a share of them replaced by the null class where there is one; None of an unconditional network.

        Args:
            generator: of the CPU; torch's global one where not given.
        """
        if self.num_classes is None or labels is None or not self.has_null or not share:
            return None if self.num_classes is None else labels
        dropped = torch.rand(len(labels), generator=generator) < share
        return torch.where(dropped.to(labels.device), self.null_label, labels)

    @property
    def _name(self) -> str:
        return f"the denoiser of a {type(self.network).__name__}"

    def _labels(self, labels: Tensor | None, z: Tensor) -> Tensor:
        assert self.num_classes is not None
        if labels is None:
            return torch.full((len(z),), self.null_label, device=z.device)
        if labels.shape != (len(z),) or labels.is_floating_point():
            raise ConfigError(f"labels are integers of shape ({len(z)},); got {labels.dtype} {tuple(labels.shape)}")
        highest = self.num_classes if self.has_null else self.num_classes - 1
        if len(labels) and (int(labels.min()) < 0 or int(labels.max()) > highest):
            said = f"0 … {self.num_classes - 1}" + (f", and {self.num_classes} for no class" if self.has_null else "")
            wrong = next(n for n in labels.tolist() if not 0 <= n <= highest)
            raise ConfigError(f"class {wrong} is out of range: {self._name} has classes {said}")
        return labels.to(z.device, torch.int64)
