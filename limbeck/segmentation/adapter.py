"""The task adapter of semantic segmentation: mmsegmentation's losses, logits before and after up-sampling."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from limbeck.engine.adapter import Batch, Forward, class_mismatch
from limbeck.engine.losses import IGNORE
from limbeck.engine.pixels import PixelAdapter, input_of
from limbeck.engine.registry import ADAPTERS
from limbeck.errors import ConfigError, ShapeMismatch


@ADAPTERS.register_module()
class SegmentationAdapter(PixelAdapter):
    """mmsegmentation's `EncoderDecoder` and `CascadeEncoderDecoder`, as `limbeck.segmentation.models` builds them.

    Offered taps: `logits` (B, K, h, w), the decode head's before up-sampling (of a cascade, the last head's);
    `full_logits` (B, K, H, W), the same at the input's size; `aux_logits` (B, K, h, w) of the auxiliary head, `[i]` of
    several. One pipeline makes the images, so crops and flips reach every member alike.
    """

    offers = ("logits", "full_logits", "aux_logits")
    resizes = False  # label maps have the images' size

    def batch(self, inputs: Any, data_samples: Any) -> Batch:
        """Targets are label maps (B, H, W), 255 where a pixel is no class.

        Raises: ShapeMismatch when images and label maps differ in size.
        """
        samples = data_samples or {}
        labels = samples.get("labels")
        if labels is not None and labels.shape != (len(inputs), *inputs.shape[2:]):
            raise ShapeMismatch(
                f"label maps {tuple(labels.shape)} do not fit images {tuple(inputs.shape)}; "
                "one label a pixel, (B, H, W), would"
            )
        return Batch(inputs, targets=labels, ids=samples.get("ids"), views=samples.get("views"))

    def forward(self, model: nn.Module, inputs: Any, batch: Batch, *, with_loss: bool) -> Forward:
        """Losses are `decode.loss_…` and `aux.loss_…`, as mmsegmentation's heads compute them."""
        net = cast(Any, model)
        features = net.extract_feat(inputs)
        samples = _samples(batch.targets) if with_loss else []
        losses: dict[str, Tensor] = {}
        heads: list[Any] = list(net.decode_head) if isinstance(net.decode_head, nn.ModuleList) else [net.decode_head]
        logits: Any = None
        for index, head in enumerate(heads):
            logits = head.forward(features) if index == 0 else head.forward(features, logits)
            if with_loss:
                prefix = "decode" if len(heads) == 1 else f"decode_{index}"
                losses |= _losses(prefix, head, logits, samples)
        aux = self._auxiliary(net, features, samples, losses, wanted=with_loss)
        last = logits[0] if isinstance(logits, tuple) else logits
        return Forward(losses, {"logits": last, "full_logits": partial(net.full_size, last, inputs), **aux})

    def _auxiliary(
        self, net: Any, features: Any, samples: list[Any], losses: dict[str, Tensor], *, wanted: bool
    ) -> dict[str, Any]:
        """Logits of the auxiliary heads; adds their losses where wanted, else they are computed only if tapped."""
        if not net.with_auxiliary_head:
            return {}
        many = isinstance(net.auxiliary_head, nn.ModuleList)
        heads = list(net.auxiliary_head) if many else [net.auxiliary_head]
        if not wanted:
            return {"aux_logits": lambda: _one_or_all([head.forward(features) for head in heads])}
        found = []
        for index, head in enumerate(heads):
            found.append(head.forward(features))
            prefix = f"aux_{index}" if many else "aux"
            losses |= _losses(prefix, head, found[-1], samples)
        return {"aux_logits": _one_or_all(found)}

    def predict(self, model: nn.Module, inputs: Any, batch: Batch) -> list[dict[str, Tensor]]:
        """One dict for the batch: pred and, where known, labels, both uint8 (B, H, W), ids (B,), classes; on the CPU.

        The model's `test_cfg` decides between the whole image and a sliding window.
        """
        size = tuple(inputs.shape[2:])
        metas = [dict(ori_shape=size, img_shape=size, pad_shape=size, padding_size=[0] * 4) for _ in inputs]
        logits = cast(Any, model).inference(inputs, metas)
        classes = torch.tensor(logits.shape[1])
        found = {"pred": logits.argmax(1).to(torch.uint8), "ids": batch.ids, "classes": classes}
        if batch.targets is not None:
            found["labels"] = batch.targets.to(torch.uint8)
        return [{name: value.detach().cpu() for name, value in found.items() if value is not None}]

    def example(self, deploy: nn.Module) -> Batch:
        """Two black images of class 0."""
        _, size = input_of(deploy)
        device = next(deploy.parameters()).device
        ids = torch.arange(2, device=device)
        labels = torch.zeros(2, *size[1:], dtype=torch.int64, device=device)
        return Batch(torch.zeros(2, *size, device=device), targets=labels, ids=ids, views=torch.zeros_like(ids))

    def check_data(self, deploy: nn.Module, dataset: Any) -> None:
        """Raises: ConfigError when the model has another number of classes than the data set."""
        found, classes = int(cast(Any, deploy).num_classes), len(dataset.classes)
        if found != classes:
            raise class_mismatch(deploy, dataset, found)
        if classes >= IGNORE:
            raise ConfigError(f"data set {dataset.name} has {classes} classes; label maps hold at most {IGNORE - 1}")


def _losses(prefix: str, head: Any, logits: Any, samples: list[Any]) -> dict[str, Tensor]:
    """A head's loss terms; its accuracy is left out."""
    return {f"{prefix}.{k}": v for k, v in head.loss_by_feat(logits, samples).items() if "loss" in k}


def _one_or_all(logits: list[Tensor]) -> Any:
    return logits[0] if len(logits) == 1 else tuple(logits)


def _samples(labels: Tensor) -> list[Any]:
    """What mmsegmentation's losses read the label maps from."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    return [SegDataSample(gt_sem_seg=PixelData(data=one[None])) for one in labels]
