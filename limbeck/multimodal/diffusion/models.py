"""Diffusion models by name: a small class-conditional U-Net, and those that diffusers loads.

diffusers is imported when one is built, not before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.registry import MODELS, require
from limbeck.errors import ConfigError, CorruptFile, DataMissing, UnknownName
from limbeck.multimodal.diffusion.generator import BOOTGenerator, ImageGenerator
from limbeck.multimodal.diffusion.samplers import Sampler
from limbeck.multimodal.diffusion.schedule import NoiseSchedule, PredictionKind, schedule_of

__all__ = ["PatchedNetwork", "denoiser_model", "diffusers_denoiser", "unet_2d"]

Attention = Literal["none", "mid", "lowest"]


@MODELS.register_module(name="Denoiser")
def denoiser_model(
    network: Mapping[str, Any] | nn.Module,
    schedule: Mapping[str, Any] | NoiseSchedule | None = None,
    prediction: PredictionKind = "v_prediction",
    num_classes: int | None = None,
    image_size: int | Sequence[int] = 28,
    channels: int = 1,
    clip: bool = True,
    sampler: Mapping[str, Any] | None = None,
    boot_t_min: int | None = None,
) -> ImageGenerator:
    """A denoiser with random weights.

    Args:
        network: config of a registered network, which also gets `image_size`, `channels` and `num_classes`.
        schedule: `dict(type='cosine', steps=1600)`, the default, or a scheduler of diffusers by its class name.
        prediction, num_classes, image_size, channels, clip: see `Denoiser`.
        sampler: how images are made, as `dict(kind='ddim', steps=4)`; see `Sampler`, whose defaults are taken.
        boot_t_min: the network is a BOOT student, read at this time; see `BOOTGenerator`.
    Raises: ExtraMissing; UnknownName, ConfigError.
    """
    size: dict[str, Any] = dict(image_size=image_size, channels=channels)
    built = (
        network
        if isinstance(network, nn.Module)
        else MODELS.make(network, where="as network of a Denoiser", num_classes=num_classes, **size)
    )
    found = NoiseSchedule.cosine() if schedule is None else schedule_of(schedule)
    made = Sampler(**sampler or {})
    if sampler is not None:
        made.scheduler(found)  # steps that do not divide the schedule's are said now
    common: dict[str, Any] = dict(clip=clip, sampler=made, **size)
    if boot_t_min is not None:
        return BOOTGenerator(built, found, prediction, num_classes, t_min=boot_t_min, **common)
    return ImageGenerator(built, found, prediction, num_classes, **common)


@MODELS.register_module(name="UNet2DModel")
def unet_2d(
    image_size: int | Sequence[int] = 28,
    channels: int = 1,
    num_classes: int | None = None,
    block_out_channels: Sequence[int] = (32, 32, 64),
    layers_per_block: int = 1,
    norm_num_groups: int = 8,
    attention: Attention = "mid",
    patch_size: int = 1,
    **options: Any,
) -> nn.Module:
    """diffusers' `UNet2DModel` with random weights; its labels are the classes and the null class.

    Args:
        image_size, channels, num_classes: see `Denoiser`, which fills them in.
        block_out_channels: one a level; every level but the last halves the image.
        norm_num_groups: of group norms; divides every entry of `block_out_channels`.
        attention: 'none', 'mid' (the middle block only) or 'lowest' (also the blocks of the last level).
        patch_size: above 1 the U-Net sees patches of so many pixels a side as channels; see `PatchedNetwork`.
        options: any other argument of `UNet2DModel`, such as attention_head_dim or dropout.
    Raises: ExtraMissing; ConfigError, UnknownName.
    """
    if attention not in ("none", "mid", "lowest"):
        raise UnknownName("attention", attention, ("none", "mid", "lowest"))
    levels = len(block_out_channels)
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if patch_size < 1 or any(side % patch_size for side in sides):
        raise ConfigError(f"patch_size of a UNet2DModel divides its image_size {image_size}; got {patch_size}")
    sides = tuple(side // patch_size for side in sides)
    if not levels or any(side % 2 ** (levels - 1) for side in sides):
        patches = f" in patches of {patch_size}" if patch_size > 1 else ""
        raise ConfigError(
            f"a UNet2DModel of {levels} levels halves its image {levels - 1} times; image_size {image_size}{patches} "
            "is no multiple of that: choose other block_out_channels"
        )
    if any(width % norm_num_groups for width in block_out_channels):
        raise ConfigError(
            f"norm_num_groups {norm_num_groups} of a UNet2DModel divides all of block_out_channels; "
            f"got {tuple(block_out_channels)}"
        )
    down, up = ["DownBlock2D"] * levels, ["UpBlock2D"] * levels
    if attention == "lowest":
        down[-1], up[0] = "AttnDownBlock2D", "AttnUpBlock2D"
    given = dict(
        sample_size=sides[0] if isinstance(image_size, int) else sides,
        in_channels=channels * patch_size**2,
        out_channels=channels * patch_size**2,
        num_class_embeds=None if num_classes is None else num_classes + 1,
        block_out_channels=tuple(block_out_channels),
        layers_per_block=layers_per_block,
        norm_num_groups=norm_num_groups,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        add_attention=attention != "none",
    )
    network = _network({**given, **options})
    return network if patch_size == 1 else PatchedNetwork(network, patch_size)


class PatchedNetwork(nn.Module):
    """A network of diffusers on patches of an image: p × p pixels are p² channels of one position, and back.

    The rearrangement keeps noise independent and normal, and loses nothing; a pass costs about p² times less.

    Args:
        network: takes and gives p² · C channels.
        patch_size: p, a divisor of the image's sides.
    """

    def __init__(self, network: nn.Module, patch_size: int) -> None:
        super().__init__()
        self.network = network
        self.patch_size = patch_size

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Noisy images (B, C, H, W), times (B,) and labels (B,) to the network's output (B, C, H, W)."""
        patches = F.pixel_unshuffle(sample, self.patch_size)
        found = self.network(patches, timestep, class_labels=class_labels).sample
        return F.pixel_shuffle(found, self.patch_size)


@MODELS.register_module(name="DiffusersDenoiser")
def diffusers_denoiser(
    model: str | None = None,
    subfolder: str | None = None,
    scheduler_subfolder: str | None = None,
    revision: str | None = None,
    pretrained: bool = True,
    config: Mapping[str, Any] | None = None,
    scheduler: Mapping[str, Any] | None = None,
    prediction: PredictionKind | None = None,
    null_class: bool = True,
    clip: bool | None = None,
    sampler: Mapping[str, Any] | None = None,
) -> ImageGenerator:
    """A `UNet2DModel` that was saved by diffusers, class-conditional or not, with the scheduler it was trained under.

    Args:
        model: 'ORG/REPO' of the Hugging Face hub, or a folder; its weights are safetensors.
        subfolder, scheduler_subfolder: of the U-Net ('unet') and the scheduler ('scheduler') in it; None is its top.
        revision: branch, tag or commit of the hub's repository.
        pretrained: False builds the same network with random weights.
        config: arguments of `UNet2DModel` with which it is built, nothing being read; wants pretrained=False.
        scheduler: config of its scheduler; read from `model` where not given.
        prediction: what the network predicts; the scheduler's prediction_type where not given.
        null_class: the network's last class embedding is the null class; False where it was trained without one.
        clip: whether samplers clamp to [−1, 1]; the scheduler's clip_sample where not given.
        sampler: how images are made; see `Sampler`, whose defaults are taken.
    Raises: ExtraMissing; ConfigError; DataMissing for what cannot be fetched; CorruptFile for weights that do not fit.
    """
    if config is not None and pretrained:
        raise ConfigError(
            "DiffusersDenoiser with a config has random weights: set pretrained=False, or leave out config"
        )
    if model is None and (config is None or scheduler is None):
        raise ConfigError("DiffusersDenoiser needs a model, or both config and scheduler with pretrained=False")
    if scheduler is None:
        scheduler = _read_config("DDPMScheduler", str(model), scheduler_subfolder, revision)
    if pretrained:
        network = _load_unet(str(model), subfolder, revision)
    else:
        network = _network(dict(config or _read_config("UNet2DModel", str(model), subfolder, revision)))
    facts: Any = network.config
    if facts.in_channels != facts.out_channels or facts.sample_size is None:
        raise ConfigError(
            f"{model or 'this UNet2DModel'} has {facts.in_channels} input and {facts.out_channels} output channels and "
            f"sample_size {facts.sample_size}; a denoiser has as many of both, and a sample_size"
        )
    embeddings, schedule, made = facts.num_class_embeds, NoiseSchedule.of_scheduler(scheduler), Sampler(**sampler or {})
    if sampler is not None:
        made.scheduler(schedule)  # steps that do not divide the schedule's are said now
    return ImageGenerator(
        network,
        schedule,
        prediction or scheduler.get("prediction_type", "epsilon"),
        None if embeddings is None else embeddings - int(null_class),
        facts.sample_size,
        facts.in_channels,
        bool(scheduler.get("clip_sample", True)) if clip is None else clip,
        null_class,
        sampler=made,
    )


def _network(config: Mapping[str, Any]) -> nn.Module:
    diffusers = require("diffusers", "a diffusion model", "diffusion")
    plain = {key: value for key, value in config.items() if not key.startswith("_")}  # its class and version
    try:
        return diffusers.UNet2DModel(**plain)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"UNet2DModel of diffusers does not take these arguments: {error}") from error


def _read_config(kind: str, model: str, subfolder: str | None, revision: str | None) -> dict[str, Any]:
    diffusers = require("diffusers", "a diffusion model", "diffusion")
    try:
        return dict(getattr(diffusers, kind).load_config(model, subfolder=subfolder, revision=revision))
    except (OSError, ValueError) as error:
        raise DataMissing(
            f"{_place(model, subfolder)}: its {kind} config cannot be read: {_first_line(error)}"
        ) from error


def _load_unet(model: str, subfolder: str | None, revision: str | None) -> nn.Module:
    """With every weight: diffusers itself only logs what a file lacks."""
    diffusers = require("diffusers", "a diffusion model", "diffusion")
    options = dict(use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True)
    try:
        network, info = diffusers.UNet2DModel.from_pretrained(model, subfolder=subfolder, revision=revision, **options)
    except OSError as error:
        raise DataMissing(f"{_place(model, subfolder)}: weights cannot be read: {_first_line(error)}") from error
    except (RuntimeError, ValueError, TypeError) as error:
        raise CorruptFile(
            f"{_place(model, subfolder)}: weights do not fit a UNet2DModel: {_first_line(error)}"
        ) from error
    wrong = [*info["missing_keys"], *info["unexpected_keys"]]
    if wrong:
        raise CorruptFile(f"{_place(model, subfolder)}: weights do not fit its config, as in {wrong[0]}; get it again")
    return network


def _place(model: str, subfolder: str | None) -> str:
    return f"{model}/{subfolder}" if subfolder else model


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
