"""What the few-shot teachers share: checks of cached image features and labels, and settings from configs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import ConfigError, ShapeMismatch, UnknownName
from limbeck.multimodal.vlm.classifier import ZeroShotClassifier

Report = Callable[[str, int, int], None]
T = TypeVar("T")


def settings_of(kind: type[T], config: Mapping[str, Any] | None) -> T:
    """Settings from a teacher's config. Raises: UnknownName for one that there is not; 'seed' is the run's."""
    known = [field.name for field in fields(kind) if field.name != "seed"]  # type: ignore[arg-type]  # a dataclass
    for key in config or {}:
        if key not in known:
            raise UnknownName("setting", key, known, f"of {kind.__name__}")
    return kind(**(config or {}))


def checked_features(name: str, zero_shot: ZeroShotClassifier, features: Tensor, labels: Tensor) -> Tensor:
    """Image features as V views (V, n, d) in float32, each of length 1.

    Args:
        name: of the set, for errors.
        features: (n, d), or (V, n, d) of V augmented views. labels: int64 (n,).
    Raises: ShapeMismatch, ConfigError.
    """
    dim, classes = zero_shot.text.shape
    views = features[None] if features.ndim == 2 else features
    if views.ndim != 3 or views.shape[-1] != dim or labels.shape != views.shape[1:2]:
        raise ShapeMismatch(
            f"{name} has features {tuple(features.shape)} and labels {tuple(labels.shape)}; a teacher of width {dim} "
            f"takes (n, {dim}) or (views, n, {dim}), and (n,)"
        )
    if not len(labels):
        raise ConfigError(f"{name} is empty; give at least one labelled image")
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ConfigError(
            f"{name} has labels from {int(labels.min())} to {int(labels.max())}, and the teacher {classes} classes; "
            "labels are class indices from 0"
        )
    return F.normalize(views.float(), dim=-1)
