"""What a hand-over between two pipelines of diffusers asks of its arguments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from limbeck.errors import ConfigError, UnknownName


def check_request(
    wanted: Sequence[tuple[str, int]], batch_size: int, at: int, steps: int, base_steps: int | None, meet: str
) -> None:
    """Prompts and seeds, and numbers of steps. Raises: ConfigError, UnknownName."""
    if not wanted or batch_size < 1:
        raise ConfigError(
            "a hand-over needs a prompt and a seed, and a batch_size of 1 or more; "
            f"got {len(wanted)} images to make and {batch_size}"
        )
    for prompt, seed in wanted:
        if not isinstance(prompt, str) or not _whole(seed) or not 0 <= seed < 2**63:
            raise ConfigError(f"prompts are texts, and seeds whole numbers from 0 on; got {prompt!r} and {seed!r}")
    for what, number in (("steps", steps), ("base_steps", 1 if base_steps is None else base_steps)):
        if not _whole(number) or number < 1:
            raise ConfigError(f"{what} of a hand-over is 1 or more; got {number!r}")
    if not _whole(at) or not 0 <= at <= steps:
        raise ConfigError(f"hand-over is at a step 0 … {steps} of the distilled pipeline; got at={at!r}")
    if meet not in ("exact", "nearest"):
        raise UnknownName("meet", meet, ("exact", "nearest"), "of a hand-over")


def check_guidance(*values: float) -> None:
    """Raises: ConfigError for one that is not finite."""
    if not all(map(math.isfinite, values)):
        raise ConfigError(f"guidance is a finite number; got {' and '.join(map(str, values))}")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_pair(base: Any, distilled: Any) -> None:
    """Both pipelines have the same latents. Raises: ConfigError."""
    facts = []
    for pipeline in (base, distilled):
        if any(getattr(pipeline, part, None) is None for part in ("unet", "vae", "scheduler")):
            raise ConfigError(
                f"{type(pipeline).__name__} has no U-Net, VAE and scheduler: a hand-over is between two of diffusers' "
                "StableDiffusionPipeline or StableDiffusionXLPipeline"
            )
        vae = pipeline.vae.config
        facts.append(
            {
                "latent channels": pipeline.unet.config.in_channels,
                "pixels a latent": pipeline.vae_scale_factor,
                "VAE scaling_factor": vae.get("scaling_factor"),
                "VAE latents_mean": vae.get("latents_mean"),
                "VAE latents_std": vae.get("latents_std"),
            }
        )
    for what, value in facts[0].items():
        if value != facts[1][what]:
            raise ConfigError(
                f"base and distilled pipeline have different latents: {what} {value} and {facts[1][what]}; a student "
                "can only go on from a base of the same VAE"
            )


def image_sides(pipeline: Any, height: int | None, width: int | None) -> dict[str, int]:
    """Height and width in pixels; the pipeline's own where not given. Raises: ConfigError."""
    side = pipeline.unet.config.sample_size
    sides = (side, side) if isinstance(side, int) else tuple(side)
    found = [pipeline.vae_scale_factor * own if given is None else given for own, given in zip(sides, (height, width))]
    if any(number < 8 or number % 8 for number in found):
        raise ConfigError(f"height and width are multiples of 8 pixels; got {found[0]} and {found[1]}")
    return {"height": found[0], "width": found[1]}
