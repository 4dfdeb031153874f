"""What tests of step distillation share: a link with its members, what they were asked, and the path in numpy."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.engine.adapter import Batch, Forward
from limbeck.engine.distiller import Distiller
from limbeck.engine.method import LinkInputs
from limbeck.multimodal.diffusion.adapter import DiffusionAdapter
from limbeck.multimodal.diffusion.denoiser import Denoiser
from limbeck.multimodal.diffusion.generator import BOOTGenerator, Noisy
from limbeck.multimodal.diffusion.samplers import Sampler
from limbeck.multimodal.diffusion.schedule import NoiseSchedule
from tests.multimodal.diffusion.toys import ToyNetwork, normal


class Spy(DiffusionAdapter):
    """Keeps what each member was asked, in order: `asked` has pairs of member and question."""

    def __init__(self, drop_labels: float = 0.1) -> None:
        super().__init__(drop_labels)
        self.asked: list[tuple[nn.Module, Noisy]] = []

    def forward(self, model: nn.Module, inputs: Any, batch: Batch, *, with_loss: bool) -> Forward:
        if isinstance(inputs, Noisy):
            self.asked.append((model, inputs))
        return super().forward(model, inputs, batch, with_loss=with_loss)


def distiller(
    link: Mapping[str, Any],
    teacher: Denoiser,
    student: Denoiser,
    *,
    more: Mapping[str, Any] | None = None,
    task_weight: float = 0.0,
    seed: int = 0,
) -> Distiller:
    """Teacher and student as they are, and one link, which nothing was asked for yet."""
    members = dict(
        teacher=dict(type="frozen", model=teacher, initial_weights=True),
        student=dict(type="trained", model=student),
        **(more or {}),
    )
    spy = Spy()
    made = Distiller(members=members, links=[link], adapter=spy, task_weight=task_weight, seed=seed)
    spy.asked.clear()
    return made


def asked(model: Distiller, member: str) -> list[Noisy]:
    """What a member was asked since the model was made."""
    assert isinstance(model.adapter, Spy)
    return [inputs for who, inputs in model.adapter.asked if who is model.member(member)]


def link_inputs(model: Distiller, batch: Batch) -> LinkInputs:
    """What the only link would see of a batch now."""
    return model._link_inputs(0, model.methods()[0], {}, batch)


def images(count: int = 12, side: int = 4, classes: int | None = 3, seed: int = 0) -> Batch:
    """Random images (B, 1, side, side) with labels in turn."""
    x = normal(count, 1, side, side, seed=seed, dtype=torch.float32)
    labels = torch.arange(count) % (classes or 1)
    return Batch(x, labels, torch.arange(count), torch.zeros(count, dtype=torch.int64))


def requests(count: int = 12, classes: int = 3) -> Batch:
    """A batch without images."""
    labels = torch.arange(count) % classes
    return Batch(torch.zeros(count, 0), labels, torch.arange(count), torch.zeros(count, dtype=torch.int64))


class Blind:
    """In the place of a batch's images: it has a length, and whatever else is asked of it raises."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count


class Constant(nn.Module):
    """One number everywhere, whatever it is asked."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, z: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Any:
        return SimpleNamespace(sample=self.value.expand(z.shape))


def constant(value: float, steps: int = 64) -> Denoiser:
    """A denoiser whose x0 is `value` everywhere."""
    return Denoiser(Constant(value), NoiseSchedule.cosine(steps), "sample", None, 4, 1, clip=False)


def boot_student(
    network: nn.Module | None = None,
    prediction: str = "sample",
    *,
    steps: int = 64,
    num_classes: int | None = 3,
    side: int = 4,
    t_min: int = 3,
    clip: bool = False,
) -> BOOTGenerator:
    """A BOOT student, in eval mode."""
    network = ToyNetwork(num_classes=num_classes, seed=5) if network is None else network
    schedule = NoiseSchedule.cosine(steps)
    made = BOOTGenerator(
        network,
        schedule,
        prediction,  # type: ignore[arg-type]
        num_classes,
        side,
        1,
        clip,
        sampler=Sampler(steps=1),
        t_min=t_min,
    )
    return made.eval()


def gradients(model: nn.Module) -> list[Tensor]:
    """Of every parameter, zero where there is none."""
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def opened(model: Distiller, *names: str) -> list[nn.Parameter]:
    """Parameters of frozen members, made to take gradients if any reached them."""
    found = [p for name in names for p in model.member(name).parameters()]
    for p in found:
        p.requires_grad_(True)
    return found


# --- the variance-preserving cosine path, in numpy and float64 ---


def alpha(t: Any, steps: int) -> np.ndarray:
    """(B, 1, 1, 1): cos(π/2 (t + 1)/T), 1 at the clean end, never below 2⁻¹²."""
    t = np.asarray(t, np.float64).reshape(-1, 1, 1, 1)
    return np.where(t < 0, 1.0, np.maximum(np.cos(np.pi / 2 * (t + 1) / steps), 2.0**-12))


def sigma(t: Any, steps: int) -> np.ndarray:
    """(B, 1, 1, 1)."""
    return np.sqrt(1 - alpha(t, steps) ** 2)


def ddim(z: np.ndarray, x0: np.ndarray, t: Any, s: Any, steps: int) -> np.ndarray:
    """A deterministic step by way of the noise that x0 leaves."""
    noise = (z - alpha(t, steps) * x0) / sigma(t, steps)
    return alpha(s, steps) * x0 + sigma(s, steps) * noise


def wide(value: Tensor) -> np.ndarray:
    """float64."""
    return value.detach().cpu().double().numpy()


def x0_of(model: Denoiser, z: np.ndarray, t: Any, labels: Tensor | None = None, guidance: float = 1.0) -> np.ndarray:
    """A denoiser's x0, in eval mode, guided by the formula of arXiv 2207.12598 with two calls."""
    mode = model.training
    model.eval()
    zs, ts = torch.from_numpy(z).float(), torch.as_tensor(np.asarray(t))
    with torch.no_grad():
        found = wide(model.predict(zs, ts, labels).x0)
        if guidance != 1.0:
            null = wide(model.predict(zs, ts, None).x0)
            found = null + guidance * (found - null)
    model.train(mode)
    return found


def flow(z: np.ndarray, t: Any, mean: float, std: float, steps: int) -> np.ndarray:
    """Where the probability-flow path of pixels N(m, s²) through z at t ends."""
    a, b = alpha(t, steps), sigma(t, steps)
    return mean + std / np.sqrt(a**2 * std**2 + b**2) * (z - a * mean)


class Flow(nn.Module):
    """`flow` as a network that predicts x0; or, with `signal`, BOOT's exact y(ε, t) for the same pixels."""

    def __init__(self, mean: float = 0.3, std: float = 0.5, steps: int = 1600, signal: bool = False) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean, dtype=torch.float64))
        self.std, self.schedule, self.signal = std, NoiseSchedule.cosine(steps), signal

    def forward(self, z: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Any:
        a, b = self.schedule.alpha(t, torch.float64), self.schedule.sigma(t, torch.float64)
        spread = (a**2 * self.std**2 + b**2).sqrt()
        x0 = self.mean + (spread - b) / a * z if self.signal else self.mean + self.std / spread * (z - a * self.mean)
        return SimpleNamespace(sample=x0.to(z.dtype))


def flow_denoiser(steps: int = 1600) -> Denoiser:
    """The exact consistency function of N(0.3, 0.5²)."""
    return Denoiser(Flow(steps=steps), NoiseSchedule.cosine(steps), "sample", None, 2, 1, clip=False)
