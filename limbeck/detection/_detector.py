"""mmdetection's detectors as deployed networks: images in, the raw outputs of their heads out."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import cache
from typing import Any, cast

import torch
from mmdet.models import SingleStageDetector, TwoStageDetector
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from limbeck.detection.targets import mmdet_samples, read_shapes
from limbeck.errors import ConfigError

_REFUSED = (TypeError, KeyError, AssertionError, ValueError, AttributeError)


@MODELS.register_module()
class TimmFeatures(nn.Module):
    """A timm backbone that gives the maps of some of its stages; mmdetection has none of its own.

    Args:
        model_name: timm's.
        out_indices: of the stages, in the order of their strides.
        pretrained: load timm's weights.
    """

    def __init__(self, model_name: str, out_indices: Sequence[int], pretrained: bool = False) -> None:
        super().__init__()
        import timm

        self.timm_model = timm.create_model(
            model_name, features_only=True, out_indices=tuple(out_indices), pretrained=pretrained
        )

    def init_weights(self) -> None:
        """timm has drawn or loaded them."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps (B, C_i, H_i, W_i) of images (B, 3, H, W)."""
        return tuple(self.timm_model(images))


class _OneStage:
    """What `model(images)` gives: class logits of every level, then box outputs, then whatever the head has more."""

    def _forward(self, batch_inputs: Tensor, batch_data_samples: Any = None) -> tuple[Tensor, ...]:
        features = self.extract_feat(batch_inputs)  # type: ignore[attr-defined]
        return tuple(_tensors(self.bbox_head(features)))  # type: ignore[attr-defined]


class _TwoStage:
    """What `model(images)` gives: RPN logits and boxes of every level, then class logits and boxes of the RoI head.

    The number of regions follows from the images, so this cannot be exported as a graph of fixed shapes.
    """

    def _forward(self, batch_inputs: Tensor, batch_data_samples: Any = None) -> tuple[Tensor, ...]:
        if torch.compiler.is_exporting() or torch.jit.is_tracing():
            raise ConfigError(
                f"{type(self).__name__} has two stages, and how many regions it looks at depends on the image; "
                "only one-stage detectors can be exported"
            )
        samples = batch_data_samples or mmdet_samples(
            read_shapes(batch_inputs, {}), (int(batch_inputs.shape[2]), int(batch_inputs.shape[3]))
        )
        net: Any = self
        features = net.extract_feat(batch_inputs)
        first = net.rpn_head(features)
        regions = net.rpn_head.predict_by_feat(*first, batch_img_metas=[sample.metainfo for sample in samples])
        return tuple(_tensors((first, net.roi_head.forward(features, regions, samples))))


def _tensors(outputs: Any) -> Iterator[Tensor]:
    """The tensors inside nested tuples and lists, in order."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, (tuple, list)):
        for part in outputs:
            yield from _tensors(part)


@cache
def _deployed(kind: type[nn.Module]) -> type[nn.Module]:
    """A detector's class with a plain call that gives a flat tuple; it keeps its name."""
    plain = _TwoStage if issubclass(kind, TwoStageDetector) else _OneStage
    made = type(kind.__name__, (plain, kind), {"__doc__": kind.__doc__, "__module__": __name__})
    return cast(type[nn.Module], made)


def _kind(name: str) -> type[nn.Module]:
    kind = MODELS.get(name)
    if kind is None or not issubclass(kind, (SingleStageDetector, TwoStageDetector)):
        raise ConfigError(
            f"a detection model is a one-stage or two-stage detector of mmdetection, such as RetinaNet, FCOS, GFL, "
            f"ATSS, FasterRCNN or CascadeRCNN; got {name!r}"
        )
    return kind


def build_detector(config: Mapping[str, Any], num_classes: int) -> nn.Module:
    """An mmdetection detector with the weights that its own `init_weights` draws, and `num_classes`.

    Args:
        config: of a one-stage or two-stage detector, in mmdetection's form with its `train_cfg` and `test_cfg`. Its
            heads get `num_classes`; a `data_preprocessor` is left out, since images come normalised.
    Raises: ConfigError for another kind of detector, or a config that mmdetection refuses.
    """
    cfg = deepcopy(dict(config))
    name = str(cfg.pop("type", None))
    cfg.pop("data_preprocessor", None)
    register_all_modules(init_default_scope=False)
    kind = _kind(name)
    two_stage = issubclass(kind, TwoStageDetector)
    holder = cfg.get("roi_head") if two_stage else cfg
    heads = None if holder is None else holder.get("bbox_head")
    if heads is None:
        raise ConfigError(f"the config of {name} has no {'roi_head with a ' if two_stage else ''}bbox_head")
    for head in heads if isinstance(heads, (list, tuple)) else [heads]:
        head["num_classes"] = num_classes
    try:
        with DefaultScope.overwrite_default_scope("mmdet"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mmdetection's heads read attributes that it deprecates
            args: dict[str, Any] = {key: ConfigDict(v) if isinstance(v, dict) else v for key, v in cfg.items()}
            model: Any = _deployed(kind)(**args)
    except _REFUSED as error:
        raise ConfigError(f"mmdetection cannot build this {name}: {error}") from error
    if not isinstance(model.rpn_head if two_stage else model.bbox_head, BaseDenseHead):
        raise ConfigError(f"{name} has a head of another kind than those that look at every position of a map")
    _draw_weights(model)
    model.num_classes = num_classes
    return model if torch.cuda.is_available() else revert_sync_batchnorm(model)


def _draw_weights(model: Any) -> None:
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel("ERROR")  # it writes three lines a parameter
    model.init_weights()
    logger.setLevel(level)
