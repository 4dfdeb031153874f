"""The task adapter of object detection: mmdetection's losses and predictions, raw head outputs by level."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from limbeck.detection.targets import DetectionTargets, mmdet_samples, read_shapes, read_targets
from limbeck.engine.adapter import Batch, Forward, class_mismatch, once
from limbeck.engine.pixels import PixelAdapter, PixelPreprocessor, input_of
from limbeck.engine.registry import ADAPTERS
from limbeck.errors import ConfigError


def zero_padding(images: Tensor, shapes: Tensor) -> Tensor:
    """Images (B, C, H, W) with 0 outside each one's height and width, `shapes` (B, 2); the same where nothing is."""
    height, width = images.shape[2:]
    if bool((shapes == shapes.new_tensor([height, width])).all()):
        return images
    rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
    inside = (rows < shapes[:, :1])[:, None, :, None] & (columns < shapes[:, 1:])[:, None, None, :]
    return images.masked_fill(~inside, 0.0)


class DetectionPreprocessor(PixelPreprocessor):
    """Normalises, then sets what is outside each image to 0, as mmdetection pads; sizes are kept."""

    def forward(self, data: Any, training: bool = False) -> dict[str, Any]:
        """`dict(inputs, data_samples)`, as `PixelPreprocessor`."""
        found = super().forward(data, training)
        shapes = read_shapes(found["inputs"], found["data_samples"] or {})
        return found | {"inputs": zero_padding(found["inputs"], shapes)}


@ADAPTERS.register_module()
class DetectionAdapter(PixelAdapter):
    """mmdetection's one-stage and two-stage detectors, as `limbeck.detection.models` builds them.

    Offered taps, tuples with one map a level, so that `cls_logits[0]` is the finest: `cls_logits` (B, A · K, h, w) and
    `box_outputs` (B, A · 4, h, w) of one-stage heads, GFL's (B, 4 · (reg_max + 1), h, w); `rpn_logits` (B, A, h, w) of
    two-stage detectors. They are what the head computes in training: FCOS, which multiplies its normalised boxes by the
    stride in evaluation, offers them without. RepPoints has no `box_outputs`, its two kinds of points being no boxes.
    Of a member without losses the head runs only where it is tapped.

    Args:
        pad_size_divisor: mmdetection's; to whose multiple an image alone would be padded. Anchors outside that take no
            part in training.
    """

    offers = ("cls_logits", "box_outputs", "rpn_logits")
    resizes = False  # boxes are in the images' pixels

    def __init__(self, pad_size_divisor: int = 32) -> None:
        super().__init__()
        if pad_size_divisor < 1:
            raise ConfigError(f"pad_size_divisor is 1 or more pixels; got {pad_size_divisor}")
        self.divisor = pad_size_divisor

    def preprocessor(self, deploy: nn.Module) -> PixelPreprocessor:
        """Normalises for `deploy`; padding is 0 afterwards."""
        return DetectionPreprocessor(*input_of(deploy), resizes=False)

    def batch(self, inputs: Any, data_samples: Any) -> Batch:
        """Targets are `DetectionTargets`, None where the samples have no boxes.

        Raises: ShapeMismatch; ConfigError for a box that does not lie in its image.
        """
        samples = data_samples or {}
        extra = {"shapes": read_shapes(inputs, samples)}
        targets = read_targets(inputs, samples)
        return Batch(inputs, targets=targets, ids=samples.get("ids"), views=samples.get("views"), extra=extra)

    def member_inputs(self, batch: Batch, deploy: nn.Module, member: nn.Module) -> Tensor:
        """The batch normalised for `member`, 0 in the padding; the very same tensor where both want the same."""
        inputs = super().member_inputs(batch, deploy, member)
        return inputs if inputs is batch.inputs else zero_padding(inputs, _shapes(batch, inputs))

    def forward(self, model: nn.Module, inputs: Any, batch: Batch, *, with_loss: bool) -> Forward:
        """Losses are mmdetection's, `bbox_head.loss_cls`, `rpn_head.loss_rpn_cls`, `roi_head.loss_bbox`, …, each summed
        over levels. A batch without objects trains on background alone.

        Raises: ConfigError for labels that are no class of the model, or a model that needs masks.
        """
        net = cast(Any, model)
        head = _dense_head(net)
        if with_loss:
            samples = self._training_samples(net, inputs, batch)
            with _output_of(head) as seen:
                losses = net.loss(inputs, samples)
            return Forward(_summed(losses, two_stage=_two_stage(net)), _offers(net, head, lambda: seen[-1]))
        features = net.extract_feat(inputs)
        outputs = once(lambda: head(features), inputs.device.type)
        if any(module._forward_hooks for module in head.modules()):
            outputs()  # a tap inside the head: its hooks are gone when an offer is asked for
        return Forward({}, _offers(net, head, outputs))

    def predict(self, model: nn.Module, inputs: Any, batch: Batch) -> list[dict[str, Tensor]]:
        """One dict for the batch, on the CPU; mmdetection's boxes after non-maximum suppression, best first.

        `boxes` (B, P, 4) float32, x1 y1 x2 y2 in pixels of the input, within the valid part; `scores` (B, P); `pred`
        (B, P) int64, −1 for padding; P is the most of one image, at least 1. Also ids (B,), `classes` (the number) and,
        where known, gt_boxes (B, M, 4), gt_labels (B, M), gt_crowd (B, M).
        """
        shapes = _shapes(batch, inputs)
        samples = mmdet_samples(shapes, _size(inputs), divisor=self.divisor)
        instances = [one.pred_instances for one in cast(Any, model).predict(inputs, samples, rescale=False)]
        most = max([1, *(len(one) for one in instances)])
        boxes, scores, pred = (
            torch.full((len(inputs), most, *more), fill, device=inputs.device)
            for more, fill in (((4,), 0.0), ((), 0.0), ((), -1))
        )
        for row, one in enumerate(instances):
            boxes[row, : len(one)] = one.bboxes
            scores[row, : len(one)] = one.scores
            pred[row, : len(one)] = one.labels
        limit = shapes.flip(1).repeat(1, 2)[:, None].to(boxes)
        classes = torch.tensor(_classes(model))
        found = dict(boxes=torch.minimum(boxes, limit).clamp(min=0), scores=scores, pred=pred, classes=classes)
        given = batch.targets
        if isinstance(given, DetectionTargets):
            found |= dict(gt_boxes=given.boxes, gt_labels=given.labels)
            found |= {} if given.crowd is None else {"gt_crowd": given.crowd}
        found |= {} if batch.ids is None else {"ids": batch.ids}
        return [{name: value.detach().cpu() for name, value in found.items()}]

    def example(self, deploy: nn.Module) -> Batch:
        """Two black images with an object of class 0 in the middle."""
        _, size = input_of(deploy)
        height, width = size[1:]
        samples = dict(
            boxes=torch.tensor([[[width / 4, height / 4, 3 * width / 4, 3 * height / 4]]]).repeat(2, 1, 1),
            labels=torch.zeros(2, 1, dtype=torch.int64),
            ids=torch.arange(2),
            views=torch.zeros(2, dtype=torch.int64),
        )
        device = next(deploy.parameters()).device
        moved = {name: value.to(device) for name, value in samples.items()}
        return self.batch(torch.zeros(2, *size, device=device), moved)

    def check_data(self, deploy: nn.Module, dataset: Any) -> None:
        """Raises: ConfigError when the model has another number of classes than the data set."""
        found = _classes(deploy)
        if found != len(dataset.classes):
            raise class_mismatch(deploy, dataset, found)

    def describe(self, deploy: nn.Module, member: nn.Module) -> dict[str, Any]:
        """As of every task of pixels; padding is part of it."""
        return super().describe(deploy, member) | {"padding": "zero after normalisation"}

    def _training_samples(self, net: Any, inputs: Tensor, batch: Batch) -> list[Any]:
        kind, targets = type(net).__name__, batch.targets
        if not isinstance(targets, DetectionTargets):
            raise ConfigError(f"{kind} cannot be trained on a batch without boxes; use a data set that has them")
        if net.with_mask:
            raise ConfigError(f"{kind} has a mask head, and data here have no masks; train it without")
        known = _classes(net)
        wrong = (targets.labels >= known).any(1)
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0, 0])
            name = f"image {row} of the batch" if batch.ids is None else f"sample {int(batch.ids[row])}"
            label = int(targets.labels[row].max())
            raise ConfigError(f"{name} has label {label}, and {kind} has {known} classes; build it for the data")
        return mmdet_samples(targets.shapes, _size(inputs), targets, divisor=self.divisor)


def _size(inputs: Tensor) -> tuple[int, int]:
    return int(inputs.shape[2]), int(inputs.shape[3])


def _shapes(batch: Batch, inputs: Tensor) -> Tensor:
    """Valid height and width of each image (B, 2)."""
    return batch.extra["shapes"] if "shapes" in batch.extra else read_shapes(inputs, {})


def _classes(model: nn.Module) -> int:
    return int(cast(Any, model).num_classes)


def _two_stage(net: Any) -> bool:
    return bool(getattr(net, "with_rpn", False))


def _dense_head(net: Any) -> nn.Module:
    """The head that looks at every position: a one-stage detector's only one, a two-stage detector's first."""
    return net.rpn_head if _two_stage(net) else net.bbox_head


@contextmanager
def _output_of(module: nn.Module) -> Iterator[list[Any]]:
    """Collects what a module gives inside the `with` block."""
    seen: list[Any] = []
    handle = module.register_forward_hook(lambda _module, _args, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()


def _summed(losses: dict[str, Any], *, two_stage: bool) -> dict[str, Tensor]:
    """mmdetection's loss terms under the name of their head, each a scalar; accuracies are left out."""
    found: dict[str, Tensor] = {}
    for name, value in losses.items():
        if "loss" in name:
            head = "bbox_head" if not two_stage else "rpn_head" if "rpn" in name else "roi_head"
            levels = value if isinstance(value, (list, tuple)) else [value]
            found[f"{head}.{name}"] = cast(Tensor, sum(level.mean() for level in levels))  # as mmengine adds them
    return found


def _offers(net: Any, head: Any, outputs: Callable[[], Any]) -> dict[str, Any]:
    if _two_stage(net):
        return {"rpn_logits": lambda: tuple(outputs()[0])}
    scaled = getattr(head, "norm_on_bbox", False) and not head.training

    def boxes() -> tuple[Tensor, ...]:
        strides = head.strides if scaled else [1] * len(outputs()[1])
        return tuple(level if stride == 1 else level / stride for level, stride in zip(outputs()[1], strides))

    logits = {"cls_logits": lambda: tuple(outputs()[0])}
    return logits if hasattr(head, "reppoints_pts_init_out") else logits | {"box_outputs": boxes}
