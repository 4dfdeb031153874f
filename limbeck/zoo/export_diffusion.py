"""A diffusion model as a function of tensors, for export: one call of its network."""

from __future__ import annotations

import json
from typing import Any, cast

import torch
from torch import Tensor, nn

from limbeck.multimodal.diffusion.samplers import class_labels, noise
from limbeck.zoo.card import Card
from limbeck.zoo.export_formats import Form

INPUTS, OUTPUTS = ("noisy", "times", "labels"), ("output",)
IMAGES = 8  # of the check
MOST = 63  # images at a time of a torch.export file: from 64 on diffusers lays out its up-sampling otherwise


class NetworkCall(nn.Module):
    """Noisy images (B, C, H, W), times (B,) and labels (B,), int64, to the network's output (B, C, H, W).

    Label K is no class. Unlike the model itself it does not look whether times and labels are in range.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, noisy: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        found = self.network(noisy, times, class_labels=labels)
        return found if isinstance(found, Tensor) else found.sample


def denoiser_form(model: nn.Module, card: Card, metadata: dict[str, str]) -> Form:
    """A student's network; it is checked against the student on noise, at times of its sampler in turn."""
    net = cast(Any, model)
    z = noise(IMAGES, net.image_shape, 0)
    labels = class_labels(IMAGES, len(card.classes))
    times = net.schedule.trailing(net.sampler.steps)
    t = times[torch.arange(IMAGES) % len(times)]
    with torch.inference_mode():
        expected = net(z, t, labels)
    rows = [slice(None), *(slice(k, k + 1) for k in range(3))]
    return Form(
        model=NetworkCall(net.network).eval(),
        inputs=INPUTS,
        outputs=OUTPUTS,
        example=(z[:2], t[:2], labels[:2]),
        calls=[(z[part], t[part], labels[part]) for part in rows],
        expected=[expected[part] for part in rows],
        origin="random",
        count=IMAGES,
        what="noisy images",
        metadata=metadata | denoiser_metadata(net, card),
        most=MOST,
    )


def denoiser_metadata(net: Any, card: Card) -> dict[str, str]:
    """What sampling takes: the sampler, its times, α at each, and what the output is.

    With z = α x + σ ε, α² + σ² = 1, the image of a 'v_prediction' is α z − σ output. The output of a BOOT student is of
    the noise alone, at its one time, and the image is it, or minus it for a 'v_prediction'.
    """
    assert card.sampler is not None
    boot = card.sampler.kind == "boot"
    times = torch.tensor([net.t_min]) if boot else net.schedule.trailing(net.sampler.steps)
    return {
        "limbeck.sampler": json.dumps(card.sampler.model_dump()),
        "limbeck.prediction": net.prediction,
        "limbeck.times": json.dumps(times.tolist()),
        "limbeck.alphas": json.dumps(net.schedule.alpha(times, torch.float64).flatten().tolist()),
        "limbeck.null_class": json.dumps(net.num_classes if net.has_null else None),
        "limbeck.clip": json.dumps(net.clip if net.sampler.clip is None else net.sampler.clip),
    }
