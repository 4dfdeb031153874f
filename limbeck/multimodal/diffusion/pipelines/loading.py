"""Both pipelines of a published pair, by diffusers: a download, or what is in its cache."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from limbeck.engine.registry import require
from limbeck.errors import ConfigError, CorruptFile, DataMissing, UnknownName
from limbeck.multimodal.diffusion.pipelines.hand_over import PipelineImages, hand_over_pipeline
from limbeck.multimodal.diffusion.pipelines.pairs import Pair, find_pair


@dataclass(frozen=True, eq=False)
class LoadedPair:
    """Two pipelines of diffusers that share all but their U-Nets, each with its scheduler."""

    pair: Pair
    base: Any
    distilled: Any

    def hand_over(self, prompts: str | Sequence[str], seeds: int | Sequence[int], **options: Any) -> PipelineImages:
        """`hand_over_pipeline` with the pair's own steps, guidance and image size where `options` set no other."""
        own: dict[str, Any] = dict(
            steps=self.pair.steps,
            guidance=self.pair.base_guidance,
            distilled_guidance=self.pair.guidance,
            height=self.pair.image_size,
            width=self.pair.image_size,
        )
        return hand_over_pipeline(self.base, self.distilled, prompts, seeds, **{**own, **options})


def load_pair(
    name: str | Pair,
    *,
    dtype: Any = None,
    device: str = "cpu",
    same_scheduler: bool = False,
    local_files_only: bool = False,
    cache_dir: str | Path | None = None,
) -> LoadedPair:
    """Both pipelines of a pair, by diffusers; what is not in its cache is downloaded, safetensors alone.

    ASSUMPTION: the base samples by DDIM with 'trailing' times for every pair. The official code keeps SDXL's 'leading'
    ones for LCM and DMD2, of which the first of four, 751, is already the time where DMD2's second step is; it takes
    Euler for Lightning and Turbo, which is DDIM in another scaling.

    Args:
        name: of `PAIRS`, a JSON file, or a `Pair`; see `find_pair`.
        dtype: of the weights, 'float16' or a torch.dtype; None is float16 on a GPU and float32 on the CPU.
        device: torch's name of one.
        same_scheduler: the base samples with the student's scheduler: the official notebook's "paper consistent" way.
        local_files_only: download nothing.
        cache_dir: of the hub's files; None is its own.
    Raises: ExtraMissing, ConfigError, UnknownName; DataMissing for files that are not there or cannot be fetched;
        CorruptFile for weights that do not fit.
    """
    pair = find_pair(name)
    diffusers = require("diffusers", "a text-to-image model", "multimodal")
    require("transformers", "a text-to-image model", "multimodal")
    if pair.kind == "lora" and find_spec("peft") is None:
        raise ConfigError(
            f"the student of {pair.name} is a LoRA, which diffusers reads by peft; install it with: pip install peft"
        )
    if dtype is None:
        dtype = torch.float32 if str(device) == "cpu" else torch.float16
    dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConfigError("dtype of a pair is 'float32', 'float16' or 'bfloat16'")
    hub: dict[str, Any] = dict(local_files_only=local_files_only, cache_dir=cache_dir)
    common: dict[str, Any] = {**hub, _dtype_key(): dtype, "variant": pair.variant, "use_safetensors": True}
    kind = getattr(diffusers, pair.pipeline)
    base: Any = _fetched(pair, pair.base, cache_dir, lambda: kind.from_pretrained(pair.base, **common))
    own = base.scheduler.config
    base.scheduler = scheduler_of(pair.base_scheduler, own, pair.base_scheduler_options)
    distilled = copy.copy(base)  # both look at the same text encoders and VAE
    distilled.scheduler = scheduler_of(pair.scheduler, own, pair.scheduler_options)
    if same_scheduler:
        base.scheduler = scheduler_of(pair.scheduler, own, pair.scheduler_options)
    if pair.kind == "unet":
        distilled.unet = _fetched(
            pair,
            pair.distilled,
            cache_dir,
            lambda: diffusers.UNet2DConditionModel.from_pretrained(pair.distilled, subfolder=pair.weights, **common),
        )
    else:
        distilled.unet = copy.deepcopy(base.unet)
        (_read_file if pair.kind == "unet_file" else _read_lora)(pair, distilled, hub)
    return LoadedPair(pair, base.to(device), distilled.to(device))


def scheduler_of(name: str, config: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """A scheduler of diffusers by its class name, with the config of another one and options set over it.

    Raises: ExtraMissing; UnknownName.
    """
    diffusers = require("diffusers", "a text-to-image model", "multimodal")
    known = [n for n in dir(diffusers) if n.endswith("Scheduler")]
    if name not in known:
        raise UnknownName("scheduler of diffusers", name, known)
    return getattr(diffusers, name).from_config(config, **options)


def _read_file(pair: Pair, distilled: Any, hub: Mapping[str, Any]) -> None:
    """Put the weights of one file, all of them, into the student's U-Net."""
    from huggingface_hub import hf_hub_download
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    here = Path(pair.distilled) / str(pair.weights)
    if not Path(pair.distilled).is_dir():
        here = _fetched(
            pair,
            pair.distilled,
            hub["cache_dir"],
            lambda: hf_hub_download(pair.distilled, str(pair.weights), **hub),
        )
    elif not here.is_file():
        raise DataMissing(f"{here}: the student's weights of {pair.name} are not there")
    try:
        distilled.unet.load_state_dict(load_file(here))
    except (RuntimeError, SafetensorError) as error:
        said = " ".join(str(error).split())[:200]
        raise CorruptFile(f"{here}: not the weights of {pair.name}'s U-Net: {said}") from error


def _read_lora(pair: Pair, distilled: Any, hub: Mapping[str, Any]) -> None:
    """Add a LoRA to the student's U-Net for good."""

    def read() -> None:
        distilled.load_lora_weights(pair.distilled, weight_name=pair.weights, use_safetensors=True, **hub)

    _fetched(pair, pair.distilled, hub["cache_dir"], read)
    distilled.fuse_lora(components=["unet"])
    distilled.unload_lora_weights()


def _fetched(pair: Pair, place: str, cache_dir: str | Path | None, read: Callable[[], Any]) -> Any:
    """What `read` gives; its failures as one sentence that says what a download takes and where it goes."""
    try:
        return read()
    except (OSError, ValueError) as error:
        if Path(place).is_dir():
            raise DataMissing(f"{place}: files of pair {pair.name} cannot be read: {_first_line(error)}") from error
        from huggingface_hub.constants import HF_HUB_CACHE

        size = "" if pair.download_gb is None else f" of {pair.download_gb:g} GB"
        folder = cache_dir or f"{HF_HUB_CACHE} (HF_HOME sets another)"
        raise DataMissing(
            f"{place} of pair {pair.name} is not on this machine and cannot be fetched: run this once with a network; "
            f"the download{size} goes to {folder}; {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _dtype_key() -> str:
    """`torch_dtype` is deprecated where diffusers knows `dtype`; older ones know the former alone."""
    return "dtype" if hasattr(import_module("diffusers.utils.deprecation_utils"), "_resolve_dtype") else "torch_dtype"
