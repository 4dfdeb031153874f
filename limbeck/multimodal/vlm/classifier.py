"""The classifier that every vision-language teacher is: an image tower, a text matrix and a scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.inputs import describe
from limbeck.engine.pixels import input_of
from limbeck.errors import ConfigError, ShapeMismatch


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


@dataclass(frozen=True, eq=False)
class Support:
    """What a few-shot teacher is fitted on: features of length 1 and labels, on the CPU.

    ids: (n,) of the labelled images in their data set. labels: (n,).
    views: (V, n, d) of augmented views. plain: (n, d) without augmentation.
    val_features, val_labels: (N, d), (N,) of held-out images, where the teacher `needs_val`.
    seed: of batches. report: called with a stage, steps done and their number.
    """

    ids: Tensor
    labels: Tensor
    views: Tensor
    plain: Tensor
    val_features: Tensor | None = None
    val_labels: Tensor | None = None
    seed: int = 0
    report: Callable[[str, int, int], None] | None = None


class AdaptedClassifier(ZeroShotClassifier):
    """A zero-shot classifier whose `classify` is adapted to few labelled images; shares the image tower it is made of.

    Subclasses add parameters or buffers, say how they enter the logits, and implement `fitted`.

    Args:
        zero_shot: the teacher that it adapts. support: n, the labelled images that it is fitted on.

    Attributes:
        support_ids, support_labels: (n,) which images those were, -1 until `fit`; so that no student is taught by a
            teacher that knows labels which the student must not.
        needs_val: fitting reads labelled images of the validation split as well.
        settings: of fitting; `settings.views` augmented views are encoded at most.
    """

    needs_val: ClassVar[bool] = False
    support_ids: Tensor
    support_labels: Tensor
    settings: Any

    def __init__(self, zero_shot: ZeroShotClassifier, support: int) -> None:
        if support < 1:
            raise ConfigError(f"{type(self).__name__} needs a support set of at least one image; got {support}")
        super().__init__(zero_shot.image, *zero_shot.text.shape)
        self.set_text(zero_shot.text, zero_shot.text_norms, zero_shot.logit_scale)
        self.register_buffer("support_ids", torch.full((support,), -1))
        self.register_buffer("support_labels", torch.full((support,), -1))
        normalization, size = input_of(zero_shot)
        describe(self, normalization.mean, normalization.std, size)

    def fit(self, support: Support) -> None:
        """Fit to these images, in place; whatever it was fitted on before is forgotten.

        Raises: ConfigError when there are not `support` of them, or what `fitted` raises.
        """
        if len(support.ids) != len(self.support_ids):
            name = type(self).__name__
            raise ConfigError(
                f"{name} is made for support={len(self.support_ids)} and {len(support.ids)} images are labelled; "
                f"set support={len(support.ids)} in the teacher's config"
            )
        made = self.fitted(self._bare(), support)
        made.support_ids.copy_(support.ids)
        made.support_labels.copy_(support.labels)
        self.load_state_dict(made.state_dict(), strict=False)  # `made` has no image tower

    def fitted(self, zero_shot: ZeroShotClassifier, support: Support) -> AdaptedClassifier:
        """A new teacher of this kind, fitted; see `fit`."""
        raise NotImplementedError(f"{type(self).__name__} does not implement fitted")

    def _bare(self) -> ZeroShotClassifier:
        """The zero-shot teacher without its image tower, on the CPU: features are there already."""
        bare = ZeroShotClassifier(nn.Identity(), *self.text.shape)
        bare.set_text(self.text, self.text_norms, self.logit_scale)
        normalization, size = input_of(self)
        describe(bare, normalization.mean, normalization.std, size)
        return bare
