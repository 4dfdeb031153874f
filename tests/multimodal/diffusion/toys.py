"""Small denoisers for the diffusion tests: one that is exact for Gaussian data, and one of random weights."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.engine.registry import MODELS
from limbeck.multimodal.diffusion.denoiser import Denoiser
from limbeck.multimodal.diffusion.schedule import NoiseSchedule, to_epsilon, to_v


class GaussianNetwork(nn.Module):
    """The best denoiser of pixels N(m, s²): E[x | z] = m + α s² (z − α m) / (α² s² + σ²), as any of the predictions.

    Args:
        means: one a class, the last for the null class.
    """

    def __init__(self, schedule: NoiseSchedule, means: list[float], std: float, prediction: str) -> None:
        super().__init__()
        self.schedule, self.std, self.prediction = schedule, std, prediction
        self.means = nn.Parameter(torch.tensor(means, dtype=torch.float64), requires_grad=False)
        self.batches: list[int] = []
        self.times: list[int] = []

    def forward(self, z: Tensor, t: Tensor, class_labels: Tensor | None = None) -> SimpleNamespace:
        self.batches.append(len(z))
        self.times.append(int(t[0]))
        labels = torch.zeros(len(z), dtype=torch.int64) if class_labels is None else class_labels
        mean = self.means[labels].reshape(-1, 1, 1, 1)
        alpha, sigma = self.schedule.alpha(t, torch.float64), self.schedule.sigma(t, torch.float64)
        wide = z.double()
        x0 = mean + alpha * self.std**2 * (wide - alpha * mean) / (alpha**2 * self.std**2 + sigma**2)
        made = {"sample": lambda *_: x0, "epsilon": to_epsilon, "v_prediction": to_v}[self.prediction]
        return SimpleNamespace(sample=made(x0, wide, alpha, sigma, "sample").to(z.dtype))


def gaussian(
    means: tuple[float, ...] = (0.3,),
    std: float = 0.5,
    prediction: str = "v_prediction",
    steps: int = 1600,
    side: int = 2,
) -> Denoiser:
    """The exact denoiser of Gaussian pixels; conditional where there are several means, the last the null class's."""
    schedule = NoiseSchedule.cosine(steps)
    network = GaussianNetwork(schedule, list(means), std, prediction)
    classes = len(means) - 1 if len(means) > 1 else None
    return Denoiser(network, schedule, prediction, classes, side, 1, clip=False)  # type: ignore[arg-type]


@MODELS.register_module(name="_ToyDenoisingNetwork")
class ToyNetwork(nn.Module):
    """Two convolutions between which an embedding of time and label is added; with drop-out, to show its mode."""

    def __init__(
        self, image_size: int = 4, channels: int = 1, num_classes: int | None = None, width: int = 6, seed: int = 0
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first = nn.Conv2d(channels, width, 3, padding=1)
            self.last = nn.Conv2d(width, channels, 3, padding=1)
            self.time = nn.Linear(2, width)
            self.label = None if num_classes is None else nn.Embedding(num_classes + 1, width)
        self.drop = nn.Dropout(0.5)
        self.modes: list[bool] = []

    def forward(self, z: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Any:
        self.modes.append(self.training)
        angle = t.to(z.dtype)[:, None] / 200
        hidden = self.time(torch.cat([angle.sin(), angle.cos()], 1))
        if self.label is not None:
            assert class_labels is not None
            hidden = hidden + self.label(class_labels)
        hidden = torch.relu(self.first(z) + hidden[:, :, None, None])
        return SimpleNamespace(sample=self.last(self.drop(hidden)))


def toy(
    num_classes: int | None = 3, seed: int = 0, prediction: str = "v_prediction", steps: int = 64, clip: bool = True
) -> Denoiser:
    """Random weights, 4 × 4 pixels, in eval mode."""
    network = ToyNetwork(num_classes=num_classes, seed=seed)
    made = Denoiser(network, NoiseSchedule.cosine(steps), prediction, num_classes, 4, 1, clip)  # type: ignore[arg-type]
    return made.eval()


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers of a seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
