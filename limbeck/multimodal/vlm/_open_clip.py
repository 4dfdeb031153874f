"""Any model of open_clip as image tower and text encoder; its text tower is dropped once the classes are encoded."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from limbeck.engine.registry import require
from limbeck.engine.weights import hash_state
from limbeck.errors import ConfigError, CorruptFile, DataMissing, UnknownName
from limbeck.multimodal.vlm.text import TextEncoder

HUB, FOLDER = "hf-hub:", "local-dir:"  # open_clip's schemes, which bring their own weights
# A text tower of no account: open_clip builds none without one, and the real one may be larger than the image's.
_NO_TEXT = dict(context_length=4, vocab_size=8, width=8, heads=1, layers=1)
# What open_clip raises where a download or a file of weights fails.
_BROKEN = (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError, SafetensorError)


def open_clip() -> Any:
    """The package. Raises: ExtraMissing."""
    return require("open_clip", "a CLIP teacher", "multimodal")


@dataclass(frozen=True)
class ImageFacts:
    """What building the image tower takes: open_clip's model config, and mean and std of its input."""

    config: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def dim(self) -> int:
        """Width of the image embedding."""
        return int(self.config["embed_dim"])


@dataclass(frozen=True)
class Towers:
    """A loaded model: image tower, text encoder and the factor exp(logit_scale)."""

    visual: nn.Module
    encoder: TextEncoder
    scale: float


def image_facts(model: str, tag: str | None) -> ImageFacts:
    """Config, mean and std, without reading weights; of a hub's model its small JSON file is fetched.

    The activation is that which a known tag was trained with: 'ViT-B-32' with 'openai' gets QuickGELU.

    Raises: ExtraMissing; UnknownName for a model that open_clip does not have; DataMissing for a config that is not
        there; CorruptFile for one that is none.
    """
    clip = open_clip()
    weights: dict[str, Any] = {}
    if model.startswith((HUB, FOLDER)):
        found = _config_file(model)
        if not isinstance(found.get("model_cfg"), dict):
            raise CorruptFile(f"{model}: its open_clip_config.json has no model_cfg; name a model made by open_clip")
        config, weights = dict(found["model_cfg"]), found.get("preprocess_cfg", {})
    else:
        config = clip.get_model_config(model.replace("/", "-"))
        if config is None:
            raise UnknownName("open_clip model", model, clip.list_models())
        weights = clip.get_pretrained_cfg(model.replace("/", "-"), tag) if tag else {}
        config["quick_gelu"] = bool(config.get("quick_gelu") or weights.get("quick_gelu"))
    default = clip.OPENAI_DATASET_MEAN, clip.OPENAI_DATASET_STD
    mean, std = (weights.get(key) or usual for key, usual in zip(("mean", "std"), default))
    return ImageFacts(config, tuple(mean), tuple(std))


def _config_file(model: str) -> dict[str, Any]:
    try:
        if model.startswith(FOLDER):
            path = Path(model.removeprefix(FOLDER)) / "open_clip_config.json"
        else:
            from open_clip.pretrained import download_pretrained_from_hf

            path = Path(download_pretrained_from_hf(model.removeprefix(HUB), filename="open_clip_config.json"))
        text = path.read_text(encoding="utf-8")
    except _BROKEN as error:
        raise DataMissing(f"{model}: its open_clip_config.json cannot be read: {_first_line(error)}") from error
    try:
        return dict(json.loads(text))
    except ValueError as error:
        raise CorruptFile(f"{path}: not a JSON object ({error}); get it again") from error


def image_side(visual: nn.Module) -> tuple[int, int]:
    """Height and width of an image tower's input."""
    size: Any = visual.image_size
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def empty_visual(facts: ImageFacts) -> nn.Module:
    """The image tower with random weights: nothing is read, and no text tower of its size is built."""
    vision = dict(facts.config["vision_cfg"])
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    made = open_clip().CustomTextCLIP(
        embed_dim=facts.dim, vision_cfg=vision, text_cfg=_NO_TEXT, quick_gelu=bool(facts.config.get("quick_gelu"))
    )
    return made.visual


def load_towers(model: str, tag: str | None, facts: ImageFacts) -> Towers:
    """The model with its weights.

    Args:
        tag: of open_clip's weights for this model, or a file of weights; not for 'hf-hub:' and 'local-dir:' models.
            Checked before, by `check_tag`.
    Raises: DataMissing for weights that cannot be fetched; CorruptFile for those that do not fit.
    """
    clip = open_clip()
    schemed = model.startswith((HUB, FOLDER))
    keywords = {} if schemed else dict(quick_gelu=facts.config["quick_gelu"])
    try:
        made = clip.create_model(
            model,
            pretrained=None if schemed else tag,
            precision="fp32",
            force_quick_gelu=bool(facts.config.get("quick_gelu")),
            require_pretrained=True,
            **keywords,
        )
    except _BROKEN as error:
        said = f"weights {tag!r} of open_clip model {model!r}: {_first_line(error)}"
        if tag is not None and os.path.isfile(tag):
            raise CorruptFile(f"{said}; name a file of this architecture") from error
        raise DataMissing(f"{said}; fetch the file elsewhere and give its path as tag") from error
    made = made.eval()
    scale = float(made.logit_scale.detach().exp().reshape(-1)[0])
    identity = dict(
        library=f"open_clip {clip.__version__}",
        model=model,
        text=hash_state({k: v for k, v in made.state_dict().items() if not k.startswith("visual.")}),
    )
    return Towers(made.visual, TextEncoder(_encode(made, clip.get_tokenizer(model)), identity), scale)


def check_tag(model: str, tag: str | None) -> None:
    """Raises: ConfigError, UnknownName, unless a built-in model has a tag or file, and one of a scheme has none."""
    if model.startswith((HUB, FOLDER)):
        if tag is not None:
            raise ConfigError(f"{model!r} brings its own weights; leave out tag={tag!r}")
        return
    clip = open_clip()
    tags = clip.list_pretrained_tags_by_model(model.replace("/", "-"))
    if tag is None:
        raise ConfigError(f"open_clip model {model!r} needs a tag: one of {tags}, or the path of a file of weights")
    if not clip.get_pretrained_cfg(model.replace("/", "-"), tag) and not os.path.isfile(tag):
        raise UnknownName(f"weights of {model}:", tag, tags, "(no file of this name is there either)")


def _encode(model: Any, tokenizer: Callable[[list[str]], Tensor]) -> Callable[[list[str]], Tensor]:
    return lambda prompts: model.encode_text(tokenizer(prompts))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
