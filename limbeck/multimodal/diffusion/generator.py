"""Denoisers that know how they are sampled: what a run deploys, and what a user gets from the zoo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.engine.cost import evaluating
from limbeck.errors import ConfigError
from limbeck.multimodal.diffusion.denoiser import Denoiser
from limbeck.multimodal.diffusion.samplers import Sampler, Samples, class_labels, generators, noise


@dataclass(slots=True)
class Noisy:
    """What a denoiser is asked about.

    z: noisy images (B, C, H, W). t: their times (B,), -1 clean. labels: (B,), or None for an unconditional network.
    x: the clean images (B, C, H, W) that z was made of, where a denoising loss is wanted.
    guidance: of the answer; see `Denoiser.predict`.
    """

    z: Tensor
    t: Tensor
    labels: Tensor | None = None
    x: Tensor | None = None
    guidance: float = 1.0

    @property
    def is_cuda(self) -> bool:
        return self.z.is_cuda

    def __len__(self) -> int:
        return len(self.z)

    def __getitem__(self, index: slice) -> Noisy:
        labels = None if self.labels is None else self.labels[index]
        return Noisy(self.z[index], self.t[index], labels, None if self.x is None else self.x[index], self.guidance)


class ImageGenerator(Denoiser):
    """A denoiser and the sampler that makes images of it.

    Args:
        sampler: how.
        args, kwargs: see `Denoiser`.
    """

    def __init__(self, *args: Any, sampler: Sampler, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sampler = sampler

    def forward(self, z: Tensor | Noisy, t: Any = None, labels: Tensor | None = None) -> Tensor:
        """The network's output (B, C, H, W), or, of a `Noisy` example, whole images: what one of them costs."""
        if isinstance(z, Noisy):
            return self.from_noise(z.z, z.labels, generators(len(z), 0)).images
        return super().forward(z, t, labels)

    def generate(
        self,
        classes: Sequence[int] | Tensor | None = None,
        *,
        count: int | None = None,
        seed: int = 0,
        batch_size: int = 64,
        record: bool = False,
    ) -> Samples:
        """Images (B, C, H, W) in [-1, 1]; image k of a seed is the same whatever the batch.

        Args:
            classes: one an image; where not given they go round, `count` images in all.
            record: keep what the model believes at each step.
        Raises: ConfigError for a class out of range, classes of an unconditional model, or neither classes nor count.
        """
        if classes is None and count is None:
            raise ConfigError("generate needs classes, one for each image, or count=…")
        if classes is not None and not len(classes):
            raise ConfigError("generate needs one class or more; classes is empty")
        if classes is not None and self.num_classes is None:
            raise ConfigError("this model is unconditional: generate takes count=… images of it, and no classes")
        if classes is not None and count not in (None, len(classes)):
            raise ConfigError(f"generate makes an image for each of {len(classes)} classes; leave out count={count}")
        number = len(classes) if classes is not None else int(count or 0)
        labels = None
        if self.num_classes is not None:
            labels = class_labels(number, self.num_classes) if classes is None else torch.as_tensor(classes)
        device = next(self.parameters()).device
        start = noise(number, self.image_shape, seed).to(device)
        draws = generators(number, seed)
        parts = []
        for first in range(0, number, batch_size):
            rows = slice(first, first + batch_size)
            part = None if labels is None else labels[rows].to(device)
            parts.append(self.from_noise(start[rows], part, draws[rows], record=record))
        return Samples.joined(parts)

    def from_noise(
        self,
        start: Tensor,
        labels: Tensor | None = None,
        draws: Sequence[torch.Generator] | None = None,
        *,
        record: bool = False,
    ) -> Samples:
        """Images from noise (B, C, H, W); `draws` has a generator for each, read where the sampler is stochastic."""
        return self.sampler.run(self, start, labels, generators=draws, record=record)


class BOOTGenerator(ImageGenerator):
    """A BOOT student y(ε, t): its network reads the starting noise, never a noisy image, and the time that is wanted.

    Of a v-network y = -v, which is what x0 = α z - σ v gives at the noisiest time, where α is nearly 0; of a
    sample-network y is its output (arXiv 2306.05544, §3.2; ASSUMPTION for v: the paper's networks predict y).

    Args:
        t_min: the time at which the sample is read.
    Raises: ConfigError for a network that predicts ε.
    """

    def __init__(self, *args: Any, t_min: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.prediction == "epsilon":
            raise ConfigError("a BOOT student predicts 'v_prediction' or 'sample': ε of pure noise says nothing of y")
        self.t_min = t_min

    def signal(self, start: Tensor, t: Any, labels: Tensor | None = None) -> Tensor:
        """y(ε, t), (B, C, H, W): the signal part of the teacher's path at time t (B,)."""
        return self.of_output(self(start, t, labels))

    def of_output(self, output: Tensor) -> Tensor:
        """y (B, C, H, W) of the network's output."""
        return output if self.prediction == "sample" else -output

    @torch.no_grad()
    def from_noise(
        self,
        start: Tensor,
        labels: Tensor | None = None,
        draws: Sequence[torch.Generator] | None = None,
        *,
        record: bool = False,
    ) -> Samples:
        """One network call, at `t_min`."""
        before = self.calls
        with evaluating(self):
            images = self.sampler.checked(self, self.signal(start, self.t_min, labels), self.t_min)
        return Samples(images, self.calls - before, torch.tensor([self.t_min]), images[None] if record else None)
