"""Zero-shot classifiers from text: prompts of every class, embedded, averaged and kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.engine.paths import cache_dir
from limbeck.engine.weights import read_weights, save_weights, sha256_json
from limbeck.errors import ConfigError, CorruptFile, UnknownName
from limbeck.multimodal.vlm.templates import check_templates

TextAverage = Literal["normalised", "raw"]
_VERSION = 1  # of what a cached file holds
_PROMPTS = 256  # encoded at a time


@dataclass(frozen=True)
class TextEncoder:
    """A text tower.

    encode: N prompts to embeddings (N, d), of any length.
    identity: a JSON value that differs wherever the embeddings do: model, hash of its weights, version of the library.
    """

    encode: Callable[[list[str]], Tensor]
    identity: Mapping[str, Any]


def check_classes(classes: Sequence[str]) -> list[str]:
    """Class names as a prompt has them: underscores become spaces.

    Raises: ConfigError for no class, an empty name, or one that comes twice.
    """
    if isinstance(classes, str) or not len(classes):
        raise ConfigError(f"classes is a list of at least one class name; got {classes!r}")
    seen: dict[str, int] = {}
    for index, given in enumerate(classes):
        name = given.replace("_", " ").strip() if isinstance(given, str) else ""
        if not name:
            raise ConfigError(f"class {index} has no name (got {given!r}); give each class a text of its own")
        if name in seen:
            raise ConfigError(f"classes {seen[name]} and {index} are both named {name!r}; tell them apart by name")
        seen[name] = index
    return list(seen)


def class_prompts(classes: Sequence[str], templates: str | Sequence[str]) -> list[list[str]]:
    """The M prompts of each of K classes; templates in alphabetical order, so that theirs changes no rounding.

    Raises: ConfigError, UnknownName.
    """
    ordered = sorted(check_templates(templates))
    return [[template.replace("{}", name) for template in ordered] for name in check_classes(classes)]


def average_prompts(embeddings: Tensor, text_average: TextAverage = "normalised") -> Tensor:
    """Class embeddings before their last normalisation: mean_m u_{c,m}, u the prompts' embeddings.

    Args:
        embeddings: of prompts, (K, M, d).
        text_average: 'normalised' brings each prompt's embedding to length 1 first, as DHO's code and PCoreSet's for
            ImageNet do; 'raw' does not, as PCoreSet's for small sets.
    Returns: (K, d).
    Raises: UnknownName.
    """
    if text_average not in get_args(TextAverage):
        raise UnknownName("text_average", str(text_average), get_args(TextAverage))
    return (F.normalize(embeddings, dim=-1) if text_average == "normalised" else embeddings).mean(1)


def class_embeddings(
    encoder: TextEncoder,
    classes: Sequence[str],
    templates: str | Sequence[str],
    *,
    text_average: TextAverage = "normalised",
    cache: bool = True,
) -> Tensor:
    """`average_prompts` of every class, (K, d) in float32; encoded once and then read from the cache folder.

    A file of the cache is named by the hash of everything that decides it, so that no stale one is read; a damaged one
    is made again.

    Raises: ConfigError, UnknownName; OutputError when the cache folder cannot be written.
    """
    prompts = class_prompts(classes, templates)
    average_prompts(torch.zeros(1, 1, 1), text_average)  # a mistake is told before minutes of encoding
    key = sha256_json(dict(version=_VERSION, encoder=encoder.identity, prompts=prompts, average=text_average))
    path = cache_dir() / "text" / f"{key[:32]}.safetensors"
    if cache and path.is_file():
        try:
            state, metadata = read_weights(path)
        except CorruptFile:
            state, metadata = {}, {}
        if metadata.get("key") == key and state["classes"].shape[0] == len(prompts):
            return state["classes"]
    found = average_prompts(_encode(encoder, prompts), text_average)
    if cache:
        save_weights(path, {"classes": found}, metadata={"key": key})
    return found


@torch.no_grad()
def _encode(encoder: TextEncoder, prompts: list[list[str]]) -> Tensor:
    flat = [prompt for of_class in prompts for prompt in of_class]
    parts = [encoder.encode(flat[i : i + _PROMPTS]).float().cpu() for i in range(0, len(flat), _PROMPTS)]
    return torch.cat(parts).reshape(len(prompts), len(prompts[0]), -1)


def text_classifier(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Class embeddings (K, d) to the classifier's unit columns W (d, K) and the lengths (K,) that they had."""
    return F.normalize(embeddings, dim=-1).T.contiguous(), embeddings.norm(dim=-1)
