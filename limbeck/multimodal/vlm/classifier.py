"""The classifier that every vision-language teacher is: an image tower, a text matrix and a scale."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.inputs import describe
from limbeck.engine.pixels import input_of
from limbeck.errors import ShapeMismatch


class ZeroShotClassifier(nn.Module):
    """Logits t = s · n(v) W of an image embedding v, n the normalisation to length 1; no text tower is kept.

    Tap: `embedding`, the normalised image embedding (B, d).

    Args:
        image: images (B, C, H, W) to embeddings (B, d); of a tuple the first is taken (CoCa's tower gives tokens too).
        dim: d. classes: K.

    Attributes:
        text: W (d, K), columns of length 1.
        text_norms: (K,) lengths of the class embeddings before that, from which CLAP's prototypes start.
        logit_scale: () s itself, the exponential of CLIP's parameter, whose logarithm half precision would round.

    All three are buffers, and zero until `set_text`, or until a state dict is loaded.
    """

    text: Tensor
    text_norms: Tensor
    logit_scale: Tensor

    def __init__(self, image: nn.Module, dim: int, classes: int) -> None:
        super().__init__()
        self.image = image
        self.embedding = nn.Identity()
        self.register_buffer("text", torch.zeros(dim, classes))
        self.register_buffer("text_norms", torch.zeros(classes))
        self.register_buffer("logit_scale", torch.zeros(()))

    def set_text(self, text: Tensor, norms: Tensor, logit_scale: float | Tensor) -> None:
        """Fill the buffers in place. Raises: ShapeMismatch."""
        if text.shape != self.text.shape or norms.shape != self.text_norms.shape:
            raise ShapeMismatch(
                f"a text matrix {tuple(text.shape)} with lengths {tuple(norms.shape)} does not fit the classifier's "
                f"{tuple(self.text.shape)}; build it for these classes and this text tower"
            )
        self.text.copy_(text)
        self.text_norms.copy_(norms)
        self.logit_scale.fill_(float(logit_scale))

    def features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to normalised embeddings (B, d)."""
        found = self.image(x)
        return self.embedding(F.normalize(found[0] if isinstance(found, tuple) else found, dim=-1))

    def classify(self, features: Tensor) -> Tensor:
        """Normalised embeddings (B, d) to logits (B, K)."""
        return self.logit_scale * features @ self.text

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, K)."""
        return self.classify(self.features(x))


class AdaptedClassifier(ZeroShotClassifier):
    """A zero-shot classifier whose `classify` is adapted to few labelled images; shares the image tower it is made of.

    Subclasses add parameters or buffers and say how they enter the logits.
    """

    def __init__(self, zero_shot: ZeroShotClassifier) -> None:
        super().__init__(zero_shot.image, *zero_shot.text.shape)
        self.set_text(zero_shot.text, zero_shot.text_norms, zero_shot.logit_scale)
        normalization, size = input_of(zero_shot)
        describe(self, normalization.mean, normalization.std, size)
