"""Small denoisers for the diffusion tests: exact for Gaussian data, or of random weights; and tiny runs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from mmengine.hooks import Hook
from torch import Tensor, nn

from limbeck.engine.config import PairConfig, RunConfig, expand, parse
from limbeck.engine.registry import METRICS, MODELS
from limbeck.engine.run import RunOptions
from limbeck.engine.weights import save_weights
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


# --- whole runs of tiny networks, on digits at 4 × 4 pixels ---


@METRICS.register_module(name="_ImageMean")
class ImageMean:
    """The mean pixel of generated images, in percent of `scale`; network calls; how far they are from the teacher's."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
        self.reset()

    def reset(self) -> None:
        self.images: list[Tensor] = []
        self.calls: list[Tensor] = []
        self.gaps: list[Tensor] = []

    def update(self, predictions: list[Any], teacher: list[Any] | None = None) -> None:
        for index, found in enumerate(predictions):
            self.images.append(found["image"])
            self.calls.append(found["calls"])
            if teacher is not None:
                self.gaps.append((found["image"] - teacher[index]["image"]).square().flatten(1).mean(1))

    def values(self) -> dict[str, float]:
        found = {"mean": 100 * self.scale * torch.cat(self.images).double().mean().item()}
        found["calls"] = torch.cat(self.calls).double().mean().item()
        return found | ({"mse_to_teacher": torch.cat(self.gaps).double().mean().item()} if self.gaps else {})

    def per_class(self) -> dict[str, list[float]]:
        return {}


def toy_config(seed: int = 0, boot: int | None = None, **sampler: Any) -> dict[str, Any]:
    """The config of a tiny denoiser of digits."""
    found = dict(
        type="Denoiser",
        network=dict(type="_ToyDenoisingNetwork", seed=seed),
        schedule=dict(type="cosine", steps=64),
        num_classes=10,
        image_size=4,
        sampler={"steps": 1, **sampler},
    )
    return found if boot is None else dict(found, boot_t_min=boot)


def toy_pair(**changes: Any) -> PairConfig:
    """A teacher of 8 guided steps and students of 1 or 2."""
    classes = [str(k) for k in range(10)]
    requests = dict(type="SampleRequests", classes=classes, count=10, name="digits")
    average = dict(target=dict(type="ema", of="student", momentum=0.8))
    cd = dict(type="ConsistencyDistillation", intervals=8, teacher=["teacher", "target"], target="target")
    halved = dict(type="ProgressiveDistillation", steps=2, guidance=1.5)
    value = dict(
        task="image-generation",
        benchmark="toy-diffusion",
        pair="toy-toy",
        data=dict(
            train=dict(type="Digits", split="train", limit=24),
            val=dict(requests, split="val"),
            test=dict(requests, split="test"),
            batch_size=8,
        ),
        adapter=dict(type="DiffusionAdapter"),
        metric=dict(type="_ImageMean", primary="mean"),
        teacher=toy_config(1, steps=8, guidance=1.5),
        student=toy_config(2),
        recipe=dict(epochs=2, optimizer=dict(type="Adam", lr=0.01), save_dtype="float32"),
        methods=dict(
            FromTeacher=dict(links=[dict(type="FromTeacher")]),
            PD=dict(
                task_weight=0.0, student=toy_config(2, steps=2), links=[halved], loop=dict(type="Halving", start=8)
            ),
            CD=dict(task_weight=0.0, links=[cd], members=average),
            BOOT=dict(task_weight=0.0, student=toy_config(2, boot=3), links=[dict(type="BOOT", step=4, guidance=1.5)]),
            DMD=dict(task_weight=0.0, links=[dict(type="DMD", ratio=2, first=0.0)]),
            Regression=dict(task_weight=0.0, links=[dict(type="Regression", pairs=20, teacher_steps=4)]),
        ),
    )
    return parse(PairConfig, {**value, **changes}, "test")


def toy_run(folder: Path, method: str, seed: int = 0, **changes: Any) -> RunConfig:
    """One run of the toy pair, with a teacher of random weights on disk."""
    path = folder / "teacher.safetensors"
    if not path.is_file():
        save_weights(path, MODELS.make(toy_config(1)).state_dict(), metadata={})
    return expand(toy_pair(**changes), method, seed, teacher_weights=str(path))


def options(folder: Path, name: str = "runs", **kwargs: Any) -> RunOptions:
    """A run in `folder/name`, without measuring a latency."""
    return RunOptions(out=folder / name, records=folder / f"{name}-records", threads=1, latency_ms=1.0, **kwargs)


class Stop(Hook):
    """Ends a run as a crash would, after so many updates."""

    def __init__(self, at: int) -> None:
        self.at = at

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if runner.iter + 1 == self.at:
            raise KeyboardInterrupt
