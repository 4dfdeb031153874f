"""What the few-shot teachers share: checks of cached image features and labels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.multimodal.vlm.classifier import ZeroShotClassifier


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
