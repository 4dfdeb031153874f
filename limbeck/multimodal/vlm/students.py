"""Students with two heads on one backbone (DHO, arXiv 2505.07675), and a small backbone for 8 × 8 digits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.cost import evaluating
from limbeck.engine.inputs import Stat, describe
from limbeck.engine.pixels import input_of
from limbeck.engine.registry import MODELS
from limbeck.errors import ConfigError
from limbeck.multimodal.vlm.knobs import check_knobs, mix_log_probs

KDHead = Literal["linear", "cosine"]
Init = Literal["random", "text", "text_raw"]
COSINE_SCALE = 100.0


@MODELS.register_module()
class DualHead(nn.Module):
    """A backbone whose pooled feature two linear classifiers read: one learns the labels, one the teacher.

    Called as a classifier it gives log p of p = α σ(z_ce) + (1 − α) σ(z_kd / β); with one head alone, z_ce. So whatever
    deploys a classifier deploys this one, and α and β travel in its weights.

    Taps: `features` (B, d), `logits` (z_ce) and `kd_logits` (B, K), as `VLMAdapter` offers them; the backbone's modules
    below 'backbone.'.

    Args:
        backbone: config of a registered model that gives a pooled feature (B, d). One with a `num_classes` is built
            without its own classifier, num_classes=0.
        num_classes: K.
        kd_head: 'linear': z_kd = W f + b. 'cosine': z_kd = 100 (W n(f) + b) with n(f) of unit length, for students that
            start as a CLIP image tower; the official code's factor multiplies the bias too. None leaves one head.
        init: of the heads: 'random' as torch draws them; 'text': the text classifier of the backbone, biases 0, where
            it has a method `text_classifier(raw: bool)` that gives (K, d) in the order of classes; 'text_raw' asks for
            averages that are not normalised, as the official code has them.
        alpha, beta: where nothing else is chosen on validation; see `limbeck.multimodal.vlm.knobs`.
    Raises: ConfigError for a backbone that gives no feature (B, d), or arguments that there are not.
    """

    alpha: Tensor
    beta: Tensor

    def __init__(
        self,
        backbone: Mapping[str, Any],
        num_classes: int,
        kd_head: KDHead | None = None,
        init: Init = "random",
        alpha: float = 0.5,
        beta: float = 1.0,
    ) -> None:
        super().__init__()
        if kd_head not in (None, "linear", "cosine") or init not in ("random", "text", "text_raw"):
            raise ConfigError(
                "DualHead takes kd_head None, 'linear' or 'cosine' and init 'random', 'text' or 'text_raw'; "
                f"got {kd_head!r} and {init!r}"
            )
        if num_classes < 2:
            raise ConfigError(f"num_classes of DualHead is 2 or more; got {num_classes}")
        check_knobs(alpha, beta)
        self.num_classes = num_classes
        self.cosine = kd_head == "cosine"
        self.backbone = cast(nn.Module, MODELS.make(_headless(backbone), where="as backbone of DualHead"))
        normalization, size = input_of(self.backbone)
        describe(self, normalization.mean, normalization.std, size)
        self.num_features = self._width(size)
        # The CE head first: one seed gives students with one and with two heads the same weights up to here.
        self.ce_head = nn.Linear(self.num_features, num_classes)
        self.kd_head = None if kd_head is None else nn.Linear(self.num_features, num_classes)
        if self.kd_head is not None:
            self.register_buffer("alpha", torch.tensor(float(alpha)))
            self.register_buffer("beta", torch.tensor(float(beta)))
        if init != "random":
            self._start_from_text(raw=init == "text_raw")

    def _width(self, size: tuple[int, int, int]) -> int:
        with evaluating(self.backbone), torch.no_grad():
            found = self.backbone(torch.zeros(2, *size))
        if not isinstance(found, Tensor) or found.ndim != 2 or not found.shape[1]:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ConfigError(
                f"DualHead needs a backbone that gives features (B, d); {type(self.backbone).__name__} gives {shape}"
            )
        return found.shape[1]

    @torch.no_grad()
    def _start_from_text(self, *, raw: bool) -> None:
        make = getattr(self.backbone, "text_classifier", None)
        if make is None:
            raise ConfigError(
                f"init='text' needs a backbone with a text classifier, which {type(self.backbone).__name__} lacks; "
                "set init='random'"
            )
        weight = torch.as_tensor(make(raw=raw))
        if weight.shape != self.ce_head.weight.shape:
            raise ConfigError(
                f"the backbone's text classifier is {tuple(weight.shape)}; DualHead needs (classes, features) "
                f"{tuple(self.ce_head.weight.shape)}"
            )
        for head in (self.ce_head, self.kd_head):
            if head is not None:
                head.weight.copy_(weight)
                head.bias.zero_()

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the pooled feature (B, d)."""
        return self.backbone(x)

    def kd_logits(self, features: Tensor) -> Tensor:
        """z_kd (B, K) of features (B, d); z_ce where there is one head."""
        if self.kd_head is None:
            return self.ce_head(features)
        if self.cosine:
            return COSINE_SCALE * self.kd_head(F.normalize(features, dim=-1))
        return self.kd_head(features)

    def mix(self, ce_logits: Tensor, kd_logits: Tensor) -> Tensor:
        """What the model answers, (B, K): log p of both heads; z_ce of one."""
        return ce_logits if self.kd_head is None else mix_log_probs(ce_logits, kd_logits, self.alpha, self.beta)

    @torch.no_grad()
    def set_knobs(self, alpha: float, beta: float) -> None:
        """Mix the heads by these from now on. Raises: ConfigError where there is one head, or for no such knobs."""
        if self.kd_head is None:
            raise ConfigError("a DualHead with kd_head=None has one head, and nothing to mix")
        check_knobs(alpha, beta)
        self.alpha.fill_(alpha)
        self.beta.fill_(beta)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to log-probabilities (B, K); to logits with one head."""
        features = self.features(x)
        ce = self.ce_head(features)
        return ce if self.kd_head is None else self.mix(ce, self.kd_logits(features))


def _headless(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """A backbone's config without its own classifier. Raises: ConfigError where it asks for one."""
    config = dict(backbone)
    kind = MODELS.lookup(str(config.get("type", "")), "as backbone of DualHead")
    if "num_classes" in signature(kind).parameters and config.setdefault("num_classes", 0) != 0:
        raise ConfigError(
            f"the backbone of DualHead has no classifier of its own; leave out num_classes={config['num_classes']}"
        )
    return config


@MODELS.register_module()
class SmallCNN(nn.Module):
    """Two 3×3 convolutions with batch norm, the second of stride 2, pooled to `pool` × `pool`: (B, widths[1] · pool²).

    Args:
        widths: channels of the two.
        mean, std: of the input on a [0, 1] scale; one number, or one for each channel.
        input_size: (channels, height, width).
    """

    def __init__(
        self,
        widths: Sequence[int] = (16, 32),
        pool: int = 2,
        mean: Stat = 0.3,
        std: Stat = 0.38,
        input_size: Sequence[int] = (1, 8, 8),
    ) -> None:
        super().__init__()
        first, second = widths
        self.conv1 = nn.Conv2d(input_size[0], first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.conv2 = nn.Conv2d(first, second, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(second)
        self.pool = nn.AdaptiveAvgPool2d(pool)
        describe(self, mean, std, input_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to features (B, d)."""
        x = F.relu(self.bn1(self.conv1(x)))
        return self.pool(F.relu(self.bn2(self.conv2(x)))).flatten(1)
