"""The task adapter of diffusion models: a denoising loss on images, images out of noise, and x0, ε and v as taps."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.adapter import Batch, Forward, class_mismatch
from limbeck.engine.pixels import PixelAdapter, PixelPreprocessor, input_of
from limbeck.engine.registry import ADAPTERS
from limbeck.errors import ConfigError
from limbeck.multimodal.diffusion.denoiser import Denoiser
from limbeck.multimodal.diffusion.generator import ImageGenerator, Noisy
from limbeck.multimodal.diffusion.samplers import generators, noise


class _Images(PixelPreprocessor):
    """Images as `PixelPreprocessor` has them; requests for samples, which have no pixels, as they are."""

    def forward(self, data: Any, training: bool = False) -> dict[str, Any]:
        """A batch of `SampleRequests` has `inputs` of shape (B, 0)."""
        if data["inputs"].shape[1:] == (0,):
            return cast(dict[str, Any], self.cast_data(data))
        return super().forward(data, training)


@ADAPTERS.register_module()
class DiffusionAdapter(PixelAdapter):
    """Denoisers, `ImageGenerator`s. A trained member's own loss is that of a diffusion model, on images of the batch.

    `loss_denoising` = mean (v̂ - v)², with t uniform over all times and ε normal, from torch's global generator; it
    equals (SNR + 1) times the squared error of x0 (specification of progressive distillation, arXiv 2202.00512, §4).

    Members are linked by methods that run them on noisy images of their own, `Noisy`; of those it offers `x0`,
    `epsilon`, `v` and `output`, the network's own, (B, C, H, W) each.

    Args:
        drop_labels: share of labels that are replaced by the null class while training, for guidance.
    Raises: ConfigError for a share that is none.
    """

    offers = ("x0", "epsilon", "v", "output")

    def __init__(self, drop_labels: float = 0.1) -> None:
        super().__init__()
        if not 0.0 <= drop_labels < 1.0:
            raise ConfigError(f"drop_labels is a share in [0, 1); got {drop_labels}")
        self.drop_labels = drop_labels

    def preprocessor(self, deploy: nn.Module) -> PixelPreprocessor:
        """Pixels to [-1, 1], at the denoiser's size."""
        return _Images(*input_of(deploy))

    def batch(self, inputs: Any, data_samples: Any) -> Batch:
        """Images (B, C, H, W), or (B, 0) for requests; targets are class labels (B,)."""
        samples = data_samples or {}
        kept = {name: samples[name] for name in ("seeds", "splits") if name in samples}
        return Batch(inputs, samples.get("labels"), samples.get("ids"), samples.get("views"), extra=kept)

    def member_inputs(self, batch: Batch, deploy: nn.Module, member: nn.Module) -> Any:
        """The same for every member.

        Raises: ConfigError for members that make images of other shapes, or noisy images of another noise schedule.
        """
        mine, its = denoiser(deploy), denoiser(member)
        if mine.image_shape != its.image_shape:
            raise ConfigError(
                f"members of one run make images of one shape; got {mine.image_shape} and {its.image_shape}"
            )
        if isinstance(batch.inputs, Noisy) and not mine.schedule.same_as(its.schedule):
            raise ConfigError(
                "members of one run read noisy images of one noise schedule; got two of "
                f"{mine.schedule.steps} and {its.schedule.steps} times"
            )
        return batch.inputs

    def forward(self, model: nn.Module, inputs: Any, batch: Batch, *, with_loss: bool) -> Forward:
        """Of images: noise is drawn, and the denoising loss given. Of `Noisy`: the answer, and a loss where x is known.

        Raises: ConfigError for a batch without images.
        """
        net = denoiser(model)
        noisy = inputs if isinstance(inputs, Noisy) else self.noised(net, inputs, batch.targets)
        found = net.predict(noisy.z, noisy.t, noisy.labels, noisy.guidance)
        losses = {}
        if with_loss and noisy.x is not None:
            v = (found.alpha * noisy.z - noisy.x) / found.sigma
            losses["loss_denoising"] = F.mse_loss(found.v.float(), v)
        offers: dict[str, Any] = {name: lambda name=name: getattr(found, name) for name in self.offers}
        return Forward(losses, offers)

    def noised(self, model: Denoiser, images: Tensor, labels: Tensor | None) -> Noisy:
        """Images (B, C, H, W) at uniform times, some of their labels (B,) dropped; draws from the global generator."""
        if images.shape[1:] == (0,):
            raise ConfigError(
                "a denoising loss needs images, and this training data has none; a method without images has "
                "task_weight=0"
            )
        t = torch.randint(model.schedule.steps, (len(images),)).to(images.device)
        drawn = torch.randn(images.shape).to(images)
        kept = model.without_some(labels, self.drop_labels)
        return Noisy(model.schedule.add_noise(images, drawn, t), t, kept, images)

    def predict(self, model: nn.Module, inputs: Any, batch: Batch) -> list[dict[str, Tensor]]:
        """One dict for the batch, on the CPU: image (B, C, H, W), label, ids, calls and split (B,).

        Image k of a request set is the same for every model that is asked, but for what the model makes of it.

        Raises: ConfigError for a batch of images, which asks for none.
        """
        if not batch.extra.get("seeds", torch.empty(0)).numel() or batch.ids is None:
            raise ConfigError("a diffusion model is tested on SampleRequests: set data.val and data.test to that type")
        net, device = generator(model), next(model.parameters()).device
        seed, ids = int(batch.extra["seeds"][0]), batch.ids.tolist()
        start = torch.cat([noise(1, net.image_shape, seed, first=k) for k in ids]).to(device)
        labels = None if net.num_classes is None else batch.targets
        made = net.from_noise(start, labels, [generators(1, seed, first=k)[0] for k in ids])
        found = dict(
            image=made.images.float(),
            label=batch.targets,
            ids=batch.ids,
            calls=torch.full((len(ids),), made.calls),
            split=batch.extra["splits"],
        )
        return [{name: value.detach().cpu() for name, value in found.items()}]

    def example(self, deploy: nn.Module) -> Batch:
        """Two noisy images at the last time."""
        net = denoiser(deploy)
        device = next(deploy.parameters()).device
        z = torch.randn(2, *net.image_shape, generator=torch.Generator().manual_seed(0)).to(device)
        labels = torch.zeros(2, dtype=torch.int64, device=device)
        t = torch.full((2,), net.schedule.steps - 1, device=device)
        inputs = Noisy(z, t, None if net.num_classes is None else labels)
        return Batch(inputs, labels, torch.arange(2, device=device))

    def check_data(self, deploy: nn.Module, dataset: Any) -> None:
        """Raises: ConfigError for a conditional model with another number of classes than the data set."""
        classes = denoiser(deploy).num_classes
        if classes is not None and classes != len(dataset.classes):
            raise class_mismatch(deploy, dataset, classes)


def denoiser(model: nn.Module) -> Denoiser:
    """The member as a denoiser. Raises: ConfigError for another model."""
    if not isinstance(model, Denoiser):
        raise ConfigError(f"{type(model).__name__} is no diffusion model; build it with type='Denoiser'")
    return model


def generator(model: nn.Module) -> ImageGenerator:
    """The member as a generator of images. Raises: ConfigError for another model."""
    if not isinstance(model, ImageGenerator):
        raise ConfigError(f"{type(model).__name__} has no sampler; build it with type='Denoiser' and a sampler")
    return model
