"""mmsegmentation's segmentors as deployed networks: an image in, logits of the image's size out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmseg.models import CascadeEncoderDecoder, EncoderDecoder
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules
from torch import Tensor, nn

from limbeck.errors import ConfigError

KINDS = ("EncoderDecoder", "CascadeEncoderDecoder")


@MODELS.register_module()
class WeightedCrossEntropy(nn.Module):
    """Cross entropy with one weight a class: the weighted mean over labelled pixels, 0 where none is.

    mmsegmentation's own, given class weights and labels to ignore, looks up a weight of class 255 and fails.
    """

    class_weight: Tensor

    def __init__(self, class_weight: Sequence[float], loss_weight: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("class_weight", torch.tensor(class_weight), persistent=False)
        self.loss_weight = loss_weight
        self.loss_name = "loss_ce"  # mmsegmentation's key

    def forward(
        self, cls_score: Tensor, label: Tensor, weight: Tensor | None = None, ignore_index: int = 255
    ) -> Tensor:
        """(B, K, H, W) and (B, H, W); `weight` (B, H, W) is a sampler's, 1 where None."""
        each = F.cross_entropy(cls_score, label, self.class_weight, ignore_index=ignore_index, reduction="none")
        valid = label != ignore_index
        share = self.class_weight[label.where(valid, 0)] * valid
        each, share = (each, share) if weight is None else (each * weight, share * weight)
        return self.loss_weight * each.sum() / share.sum().clamp(min=torch.finfo(each.dtype).eps)


class _FullSize:
    """What `model(images)` gives: logits (B, K, H, W) at the images' size; the other modes are mmsegmentation's."""

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = "tensor") -> Any:
        found = super().forward(inputs, data_samples, mode)  # type: ignore[misc]
        if mode != "tensor":
            return found
        return self.full_size(found[0] if isinstance(found, tuple) else found, inputs)

    def full_size(self, logits: Tensor, images: Tensor) -> Tensor:
        """Logits (B, K, h, w) at the height and width of the images (B, C, H, W)."""
        corners = self.align_corners  # type: ignore[attr-defined]
        return F.interpolate(logits, size=images.shape[2:], mode="bilinear", align_corners=corners)


class Segmentor(_FullSize, EncoderDecoder):
    """`EncoderDecoder` whose plain call gives logits at the input's size."""


class CascadeSegmentor(_FullSize, CascadeEncoderDecoder):
    """`CascadeEncoderDecoder` whose plain call gives the last head's logits at the input's size."""


def build_segmentor(config: Mapping[str, Any], num_classes: int) -> nn.Module:
    """An mmsegmentation segmentor with the weights that its own `init_weights` draws.

    Args:
        config: of an EncoderDecoder or CascadeEncoderDecoder, in mmsegmentation's form. Heads get `num_classes`, and
            cross entropy averaged over labelled pixels where they name no loss: mmsegmentation's own default divides by
            all pixels, ignored ones included.
    Raises: ConfigError for another kind of segmentor, or a config that mmsegmentation refuses.
    """
    cfg = deepcopy(dict(config))
    kind = cfg.pop("type", "EncoderDecoder")
    if kind not in KINDS:
        raise ConfigError(f"a segmentation model is one of {', '.join(KINDS)}; got {kind!r}")
    for name in ("decode_head", "auxiliary_head"):
        heads = cfg.get(name)
        for head in heads if isinstance(heads, (list, tuple)) else [] if heads is None else [heads]:
            head["num_classes"] = num_classes
            head.setdefault("align_corners", False)
            head.setdefault("loss_decode", dict(type="CrossEntropyLoss", avg_non_ignore=True))
    cfg.setdefault("test_cfg", dict(mode="whole"))
    register_all_modules(init_default_scope=False)
    network = Segmentor if kind == "EncoderDecoder" else CascadeSegmentor
    try:
        with DefaultScope.overwrite_default_scope("mmseg"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mmsegmentation's heads call its own deprecated builders
            args: dict[str, Any] = {key: ConfigDict(v) if isinstance(v, dict) else v for key, v in cfg.items()}
            model = network(**args)
    except (TypeError, KeyError, AssertionError) as error:
        raise ConfigError(f"mmsegmentation cannot build this {kind}: {error}") from error
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel("ERROR")  # it writes three lines a parameter
    model.init_weights()
    logger.setLevel(level)
    return model if torch.cuda.is_available() else revert_sync_batchnorm(model)
