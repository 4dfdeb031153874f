"""A zero-shot teacher of random weights that costs nothing."""

from __future__ import annotations

import torch
from torch import nn

from limbeck.engine.inputs import describe
from limbeck.multimodal.vlm.classifier import ZeroShotClassifier
from limbeck.multimodal.vlm.text import text_classifier


def toy_teacher(dim: int = 6, classes: int = 4, seed: int = 0, scale: float = 7.0, side: int = 4) -> ZeroShotClassifier:
    """Flattened images (B, 3, side, side) through one linear layer; class embeddings of lengths other than 1."""
    draw = torch.Generator().manual_seed(seed)
    image = nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, dim))
    with torch.no_grad():
        for parameter in image.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    made = ZeroShotClassifier(image, dim, classes)
    made.set_text(*text_classifier(torch.randn(classes, dim, generator=draw) * 1.7), scale)
    describe(made, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), (3, side, side))
    return made


def toy_features(count: int, dim: int = 6, classes: int = 4, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit features (count, dim) that lean towards a direction of their class, and labels (count,) in turns."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    features = centres[labels] + torch.randn(count, dim, generator=draw)
    return nn.functional.normalize(features, dim=-1), labels
