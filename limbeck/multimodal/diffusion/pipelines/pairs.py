"""Published pairs of a text-to-image model and its distilled student, as data; importing this loads nothing heavy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from limbeck.errors import ConfigError, DataMissing, UnknownName

TRAILING: dict[str, Any] = dict(timestep_spacing="trailing")


class Pair(BaseModel):
    """A base model and its student: same latent space, noise schedule and text encoders; only the U-Net differs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    pipeline: Literal["StableDiffusionXLPipeline", "StableDiffusionPipeline"] = "StableDiffusionXLPipeline"
    base: str = Field(description="'owner/name' of the Hugging Face hub, or a folder that a pipeline was saved to")
    distilled: str = Field(description="the same, of the student")
    kind: Literal["unet", "unet_file", "lora"] = Field(
        description="what the student is: a saved U-Net, a file of U-Net weights, or a LoRA file for the base's U-Net"
    )
    weights: str | None = Field(
        default=None, description="subfolder of a 'unet', None its top; file of the other kinds"
    )
    variant: str | None = Field(default=None, description="of the base's files and of a 'unet': 'fp16', or None")
    scheduler: str = Field(description="class of diffusers that samples the student")
    scheduler_options: dict[str, Any] = Field(default_factory=dict, description="set over the base's own config")
    base_scheduler: str = "DDIMScheduler"
    base_scheduler_options: dict[str, Any] = Field(default_factory=lambda: {**TRAILING, "clip_sample": False})
    steps: int = Field(default=4, ge=1, description="of the student")
    guidance: float = Field(default=0.0, description="of the student; 0 and 1 are none")
    base_guidance: float = Field(default=7.0, description="the official code's default for SDXL")
    image_size: int = Field(default=1024, description="side in pixels")
    times: tuple[int, ...] | None = Field(
        default=None, description="that the scheduler gives these steps; for the reader"
    )
    download_gb: float | None = Field(
        default=None, description="base and student together, 10⁹ bytes; None is not known"
    )
    licence: str | None = Field(default=None, description="of the student's weights, as the hub states it")
    paper: str | None = Field(default=None, description="arXiv id")
    source: str = Field(default="", description="where these facts were read")
    unconfirmed: str = Field(default="", description="what could not be")

    @model_validator(mode="after")
    def _file_of_safetensors(self) -> Self:
        if self.kind != "unet" and not str(self.weights).endswith(".safetensors"):
            raise ValueError(f"weights of a {self.kind!r} are a .safetensors file; got {self.weights!r}")
        return self


_SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
_CODE = "rohitgandikota/distillation utils/load_util.py"

PAIRS: dict[str, Pair] = {
    pair.name: pair
    for pair in (
        Pair(
            name="sdxl-turbo",
            base=_SDXL,
            distilled="stabilityai/sdxl-turbo",
            kind="unet",
            weights="unet",
            variant="fp16",
            scheduler="EulerAncestralDiscreteScheduler",
            scheduler_options=TRAILING,
            image_size=512,
            times=(999, 749, 499, 249),
            download_gb=12.1,
            licence="sai-nc-community",
            paper="2311.17042",
            source=f"{_CODE}; diffusers' SDXL Turbo page; scheduler_config.json and file list of the model",
            unconfirmed="the arXiv id is from memory; the U-Net's size is taken to be that of SDXL's, 5.14 GB",
        ),
        Pair(
            name="sdxl-lightning",
            base=_SDXL,
            distilled="ByteDance/SDXL-Lightning",
            kind="unet_file",
            weights="sdxl_lightning_4step_unet.safetensors",
            variant="fp16",
            scheduler="EulerDiscreteScheduler",
            scheduler_options=TRAILING,
            times=(999, 749, 499, 249),
            download_gb=12.1,
            licence="openrail++",
            paper="2402.13929",
            source=f"{_CODE}; model card and file list of the model",
        ),
        Pair(
            name="sdxl-lcm",
            base=_SDXL,
            distilled="latent-consistency/lcm-sdxl",
            kind="unet",
            variant="fp16",
            scheduler="LCMScheduler",
            guidance=8.0,
            times=(999, 759, 499, 259),
            download_gb=12.1,
            licence="openrail++",
            paper="2310.04378",
            source=f"{_CODE}; diffusers' LCM guide, whose guidance 8 is an input of this U-Net; file list of the model",
        ),
        Pair(
            name="sdxl-lcm-lora",
            base=_SDXL,
            distilled="latent-consistency/lcm-lora-sdxl",
            kind="lora",
            weights="pytorch_lora_weights.safetensors",
            variant="fp16",
            scheduler="LCMScheduler",
            guidance=1.0,
            times=(999, 759, 499, 259),
            download_gb=7.3,
            licence="openrail++",
            paper="2311.05556",
            source="diffusers' LCM guide; file list of the model",
        ),
        Pair(
            name="sdxl-dmd2",
            base=_SDXL,
            distilled="tianweiy/DMD2",
            kind="unet_file",
            weights="dmd2_sdxl_4step_unet_fp16.safetensors",
            variant="fp16",
            scheduler="LCMScheduler",
            # With LCM's own 50 the times were 999, 759, 499, 259; these are those that DMD2 was trained at.
            scheduler_options=dict(original_inference_steps=1000),
            times=(999, 749, 499, 249),
            download_gb=12.1,
            licence="cc-by-nc-4.0",
            paper="2405.14867",
            source=f"{_CODE}; tianweiy/DMD2 demo/text_to_image_sdxl.py; model card and file list of the model",
        ),
        Pair(
            name="sd15-lcm-lora",
            pipeline="StableDiffusionPipeline",
            base="stable-diffusion-v1-5/stable-diffusion-v1-5",
            distilled="latent-consistency/lcm-lora-sdv1-5",
            kind="lora",
            weights="pytorch_lora_weights.safetensors",
            variant="fp16",
            scheduler="LCMScheduler",
            guidance=1.0,
            base_guidance=7.5,
            image_size=512,
            times=(999, 759, 499, 259),
            licence="openrail++",
            paper="2311.05556",
            source="diffusers' LCM guide; file lists of both models",
            unconfirmed="the guide uses this LoRA on other 1.5 models; base_guidance is diffusers' default",
        ),
    )
}


def find_pair(name: str | Pair) -> Pair:
    """A pair of `PAIRS` by its name, or your own from a JSON file with the fields of `Pair`.

    Raises: UnknownName, listing near ones; DataMissing for a file that is not there, ConfigError for one that is wrong.
    """
    if isinstance(name, Pair):
        return name
    if not name.endswith(".json"):
        if name not in PAIRS:
            raise UnknownName("pair", name, PAIRS, "of a text-to-image model and its student")
        return PAIRS[name]
    try:
        return Pair.model_validate(json.loads(Path(name).read_text(encoding="utf-8")))
    except OSError as error:
        raise DataMissing(f"{name}: this pair cannot be read: {error.strerror}") from error
    except ValueError as error:
        said = error.errors()[0] if isinstance(error, ValidationError) else None
        detail = f"{'.'.join(map(str, said['loc']))} {said['msg']}".strip() if said else str(error)
        raise ConfigError(f"{name}: not a pair of models: {detail}") from error
