"""Text-to-image pipelines of diffusers with a few thousand random weights, and a tokenizer of the letters a to z."""

from __future__ import annotations

import copy
import json
import string
from pathlib import Path
from typing import Any

import diffusers
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from limbeck.multimodal.diffusion.pipelines.loading import scheduler_of
from limbeck.multimodal.diffusion.pipelines.pairs import Pair

SIDE = 16  # pixels; latents are 8 × 8
# That of SDXL's scheduler: its betas, 'leading' times from 1 on.
NOISE = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    num_train_timesteps=1000,
    steps_offset=1,
    timestep_spacing="leading",
    set_alpha_to_one=False,
)


def tokenizer(folder: Path) -> Any:
    """Of single letters."""
    letters = list(string.ascii_lowercase)
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=12)


def unet(xl: bool, seed: int, **changes: Any) -> Any:
    """A U-Net of two levels."""
    torch.manual_seed(seed)
    extra = dict(
        addition_embed_type="text_time", addition_time_embed_dim=2, projection_class_embeddings_input_dim=6 * 2 + 8
    )
    config: dict[str, Any] = dict(
        sample_size=SIDE // 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16 if xl else 8,
        attention_head_dim=4,
        norm_num_groups=4,
        **(extra if xl else {}),
    )
    return diffusers.UNet2DConditionModel(**{**config, **changes}).eval()


def pipeline(folder: Path, xl: bool = True, seed: int = 0) -> Any:
    """A base pipeline with SDXL's scheduler."""
    torch.manual_seed(100 + seed)
    facts = CLIPTextConfig(
        vocab_size=54,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=8,
        max_position_embeddings=12,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=SIDE,
        scaling_factor=0.13025,
    ).eval()
    words = tokenizer(folder / "words")
    common: dict[str, Any] = dict(
        vae=vae,
        text_encoder=CLIPTextModel(facts).eval(),
        tokenizer=words,
        unet=unet(xl, seed),
        scheduler=diffusers.EulerDiscreteScheduler(**{k: v for k, v in NOISE.items() if k != "set_alpha_to_one"}),
    )
    if xl:
        second = CLIPTextModelWithProjection(facts).eval()
        return diffusers.StableDiffusionXLPipeline(
            **common, text_encoder_2=second, tokenizer_2=words, add_watermarker=False
        )
    return diffusers.StableDiffusionPipeline(
        **common, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def scheduled(pipe: Any, name: str, network: Any = None, **options: Any) -> Any:
    """The same pipeline with another scheduler of the same noise, and another U-Net where given."""
    made = copy.copy(pipe)
    made.scheduler = scheduler_of(name, NOISE, {"timestep_spacing": "trailing", "clip_sample": False, **options})
    if network is not None:
        made.unet = network
    made.set_progress_bar_config(disable=True)
    return made


def both(pipe: Any, pair: Pair, seed: int = 1) -> tuple[Any, Any]:
    """Base and student as `load_pair` would give them, with random weights."""
    base = scheduled(pipe, pair.base_scheduler, **pair.base_scheduler_options)
    guided = {"time_cond_proj_dim": 8} if pair.guidance > 1 else {}  # LCM's U-Net is told its guidance
    student = unet(pair.pipeline.startswith("StableDiffusionXL"), seed, **guided)
    options = {"timestep_spacing": "leading", **pair.scheduler_options}
    return base, scheduled(pipe, pair.scheduler, student, **options)
