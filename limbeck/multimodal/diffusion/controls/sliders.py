"""Control distillation: a slider is trained on one model and works on another of its architecture (arXiv 2503.10637).

Sliders are low-rank adapters whose scale sets how much of an attribute images have (Concept Sliders, arXiv 2311.12092).
Trained on the base, one is switched on in the student as it is, or the reverse.

    pairs = halves(images, labels, "ink_mass")
    slider = train_slider(base, pairs).adapter
    noises, classes = noise(256, base.image_shape, seed=1), class_labels(256, 10)
    of_base = control_curve(base, slider, Sampler("ddim", 50), noises, classes, SCALES, "ink_mass")
    of_student = control_curve(student, slider, Sampler("ddim", 4), noises, classes, SCALES, "ink_mass")
    transfer_ratio(of_student, of_base)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.cost import evaluating
from limbeck.errors import ConfigError, DeadLoss, NonFiniteLoss
from limbeck.multimodal.diffusion.controls.attributes import Attribute, Pairs, halves, measure
from limbeck.multimodal.diffusion.controls.low_rank import LAYERS, LowRankAdapter, Switch
from limbeck.multimodal.diffusion.denoiser import Denoiser
from limbeck.multimodal.diffusion.samplers import Sampler, generators
from limbeck.multimodal.diffusion.schedule import PredictionKind, check_prediction

__all__ = [
    "SCALES",
    "ControlCurve",
    "LowRankAdapter",
    "Pairs",
    "TrainedSlider",
    "control_curve",
    "halves",
    "slider_loss",
    "train_slider",
    "transfer_ratio",
]

SCALES = (-2.0, -1.0, 0.0, 1.0, 2.0)


def slider_loss(
    model: Denoiser,
    switch: Switch,
    low: Tensor,
    high: Tensor,
    t: Tensor,
    noise: Tensor,
    labels: Tensor | None = None,
    loss_on: PredictionKind = "epsilon",
) -> Tensor:
    """The visual slider's: ‖ε̂₊(z_t of high) − ε‖² + ‖ε̂₋(z_t of low) − ε‖², means over every entry (arXiv 2311.12092).

    ε̂₊ and ε̂₋ are the model's with the adapter at scales 1 and −1; both halves have the same t and ε.

    Args:
        switch: of the adapter, which is on.
        low, high, noise: (B, C, H, W). t: (B,). labels: (B,), of both.
        loss_on: 'epsilon' as above, or 'v_prediction' or 'sample' with v or x0 in its place. Of the same error, that in
            ε is α² times that in v and (α/σ)² times that in x0: next to nothing at the first times of a sampler.
    Returns: scalar.
    Raises: as `Denoiser.forward`.
    """
    alpha, sigma = model.schedule.alpha(t, noise.dtype), model.schedule.sigma(t, noise.dtype)
    loss = noise.new_zeros(())
    for scale, x in ((1.0, high), (-1.0, low)):
        switch.scale = scale
        found = model.predict(alpha * x + sigma * noise, t, labels)
        if loss_on == "epsilon":
            loss = loss + F.mse_loss(found.epsilon, noise)
        elif loss_on == "sample":
            loss = loss + F.mse_loss(found.x0, x)
        else:
            loss = loss + F.mse_loss(found.v, alpha * noise - sigma * x)
    return loss


@dataclass(frozen=True, eq=False)
class TrainedSlider:
    """adapter: at scale 1 it gives more of the attribute, at −1 less. losses: (steps,) of its training."""

    adapter: LowRankAdapter
    losses: Tensor


@torch.enable_grad()
def train_slider(
    base: Denoiser,
    pairs: Pairs,
    *,
    rank: int = 4,
    alpha: float = 1.0,
    layers: str = LAYERS,
    steps: int = 300,
    batch_size: int = 32,
    lr: float = 1e-3,
    loss_on: PredictionKind = "epsilon",
    times: Sequence[int] | Tensor | None = None,
    seed: int = 0,
    show: bool = True,
) -> TrainedSlider:
    """Train a slider on pairs of images; the base is left as it was, whichever way this ends.

    AdamW with torch's weight decay and a constant learning rate. ASSUMPTION: in eval mode, without drop-out. The paper
    takes 500 to 1,000 steps of one image at a learning rate of 2e-4; the defaults are ours, for networks of a million
    weights. All draws are on the CPU.

    Args:
        base: the model to train on; also a student, for the reverse way.
        pairs: as `halves` makes them.
        rank, alpha, layers: see `LowRankAdapter.of`.
        steps: updates, each of `batch_size` pairs.
        loss_on: see `slider_loss`; 'v_prediction' where the slider is for a student of one or two steps.
        times: drawn from evenly; None is 0 … T − 1. `base.schedule.trailing(N)` for a student that knows N times alone.
        seed: of A and of all draws.
        show: a progress bar, on a terminal.
    Raises: ConfigError; NonFiniteLoss; DeadLoss where no adapted layer has a part in the output.
    """
    _check_training(steps, batch_size, lr, loss_on)
    _check_classes(base, pairs)
    drawn_from = _times(base, times)
    adapter = LowRankAdapter.of(base, rank=rank, alpha=alpha, layers=layers, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    device, dtype = next((p.device, p.dtype) for p in base.network.parameters())
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=lr)
    losses = []
    with _frozen(base), evaluating(base), adapter.on(base) as switch:
        for step in _progress(steps, show):
            low, high, labels = pairs.draw(batch_size, generator)
            t = drawn_from[torch.randint(len(drawn_from), (batch_size,), generator=generator)]
            noise = torch.randn(high.shape, generator=generator).to(device, dtype)
            low, high, t = low.to(device, dtype), high.to(device, dtype), t.to(device)
            loss = slider_loss(base, switch, low, high, t, noise, labels, loss_on)
            if not bool(torch.isfinite(loss)):
                raise NonFiniteLoss(
                    f"the slider's loss is {float(loss.detach())} at step {step + 1} of {steps}; lower lr={lr}, or "
                    "check the weights of the base"
                )
            optimizer.zero_grad()
            if loss.requires_grad:
                loss.backward()
            if not any(up.grad is not None for up in adapter.up.values()):
                raise DeadLoss(f"layers={layers!r} takes no part in the base's output; choose layers that it runs")
            optimizer.step()
            losses.append(loss.detach())
    return TrainedSlider(adapter, torch.stack(losses).cpu())


@dataclass(frozen=True, eq=False)
class ControlCurve:
    """How an attribute of samples follows an adapter's scale.

    scales: S of them. values: (S, B) float64, the attribute of each image; the same noise and label at every scale.
    agreement: (S,) float64, share of images whose class a classifier finds; None where none was given.
    images: (S, B, C, H, W), where they were kept.
    """

    scales: tuple[float, ...]
    values: Tensor
    agreement: Tensor | None = None
    images: Tensor | None = field(default=None, repr=False)

    @property
    def means(self) -> Tensor:
        """(S,) float64, mean attribute at each scale."""
        return self.values.mean(1)

    @property
    def slope(self) -> float:
        """Least-squares slope of the mean attribute against the scale, which is that of all images' as well."""
        from scipy.stats import linregress

        return float(linregress(self.scales, self.means.tolist()).slope)  # type: ignore[attr-defined]

    @property
    def rho(self) -> float | None:
        """Spearman's rank correlation of mean attribute and scale; None where all means are equal."""
        from scipy.stats import spearmanr

        means = self.means.tolist()
        return None if min(means) == max(means) else float(spearmanr(self.scales, means).statistic)  # type: ignore[attr-defined]

    @property
    def off_target(self) -> Tensor | None:
        """(S,), 1 − agreement at s / agreement at 0: what the classes lose. None where there is no agreement at 0."""
        if self.agreement is None or not float(self.agreement[self.scales.index(0.0)]):
            return None
        return 1 - self.agreement / self.agreement[self.scales.index(0.0)]


def control_curve(
    model: Denoiser,
    adapter: LowRankAdapter,
    sampler: Sampler,
    noise: Tensor,
    labels: Tensor | None,
    scales: Sequence[float],
    attribute: Attribute,
    *,
    classifier: Callable[[Tensor], Tensor] | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    keep_images: bool = False,
) -> ControlCurve:
    """Sample at every scale from the same noise and measure the attribute.

    Args:
        model: the base or a student. adapter, sampler: see `LowRankAdapter` and `Sampler`.
        noise: (B, C, H, W). labels: (B,), or None.
        scales: two or more different ones, such as `SCALES`; with 0 where there is a classifier.
        attribute: see `attributes.measure`.
        classifier: images (B, C, H, W) in [−1, 1] to logits (B, K); its agreement with `labels` is measured.
        batch_size: images a network call; all where not given.
        seed: of what a stochastic sampler draws on the way, the same at every scale.
        keep_images: also return the images.
    Raises: ConfigError; as `Sampler.sample`.
    """
    scales = tuple(float(s) for s in scales)
    if len(set(scales)) < 2 or len(set(scales)) < len(scales) or not all(map(math.isfinite, scales)):
        raise ConfigError(f"a control curve takes 2 or more different, finite scales; got {scales}")
    if classifier is not None and (labels is None or 0.0 not in scales):
        raise ConfigError("class agreement needs labels, and scale 0 to compare with; give both, or no classifier")
    values, agreement, images = [], [], []
    for scale in scales:
        drawn = generators(len(noise), seed) if sampler.stochastic else None
        with adapter.on(model, scale):
            made = sampler.sample(model, noise, labels, generators=drawn, batch_size=batch_size).images
        values.append(measure(made, attribute))
        if classifier is not None and labels is not None:
            agreement.append(_agreement(classifier, made, labels))
        if keep_images:
            images.append(made)
    return ControlCurve(
        scales,
        torch.stack(values),
        torch.tensor(agreement, dtype=torch.float64) if agreement else None,
        torch.stack(images) if keep_images else None,
    )


def transfer_ratio(student: ControlCurve, base: ControlCurve) -> float:
    """The student's slope over the base's, of one attribute and the same scales; 1 is a control that works as well.

    Raises: ConfigError for different scales, or where the adapter does nothing on the base.
    """
    if student.scales != base.scales:
        raise ConfigError(f"control curves of different scales are not compared: {student.scales} and {base.scales}")
    if base.slope == 0:
        raise ConfigError("the adapter has no effect on the base, so there is nothing to transfer; train it longer")
    return student.slope / base.slope


def _agreement(classifier: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        logits = classifier(images)
    if logits.ndim != 2 or len(logits) != len(images):
        raise ConfigError(f"a classifier gives logits ({len(images)}, K); got {tuple(logits.shape)}")
    return float((logits.argmax(1).cpu() == labels.cpu()).double().mean())


def _check_training(steps: int, batch_size: int, lr: float, loss_on: PredictionKind) -> None:
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{name} of a slider's training is an integer of 1 or more; got {value!r}")
    if not math.isfinite(lr) or lr <= 0:
        raise ConfigError(f"lr of a slider's training is a positive number; got {lr}")
    check_prediction(loss_on)


def _check_classes(model: Denoiser, pairs: Pairs) -> None:
    """Images have no null class, which the denoiser itself would take."""
    highest = -1 if pairs.high_labels is None else int(pairs.high_labels.max())
    if model.num_classes is not None and highest >= model.num_classes:
        raise ConfigError(
            f"class {highest} of the images is out of range: this model has classes 0 … {model.num_classes - 1}"
        )


def _times(model: Denoiser, times: Sequence[int] | Tensor | None) -> Tensor:
    last = model.schedule.steps - 1
    found = torch.arange(last + 1) if times is None else torch.as_tensor(times).flatten().cpu()
    if not len(found) or found.is_floating_point() or int(found.min()) < 0 or int(found.max()) > last:
        raise ConfigError(f"times of a slider's training are one or more integers of 0 … {last}; got {times}")
    return found.long()


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No gradients for the parameters of a model; those that had them get them back."""
    asked = [p for p in model.parameters() if p.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


def _progress(steps: int, show: bool) -> Iterator[int]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(range(steps), "slider", console=console, disable=not (show and console.is_terminal))
