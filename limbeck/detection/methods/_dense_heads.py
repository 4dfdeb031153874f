"""mmdetection's one-stage heads in parts: their convolutions up to one layer, and what follows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.errors import ConfigError


@dataclass(frozen=True, slots=True)
class HeadForm:
    """A family of heads: its output layers, and CrossKD's published numbers for it.

    classes, boxes, centerness: names of the output layers; centerness only where it is distilled.
    box_loss: 'distribution', 'giou' or 'iou'.
    class_factor, box_factor: on the two terms.
    """

    name: str
    classes: str
    boxes: str
    box_loss: str
    class_factor: float
    box_factor: float
    centerness: str | None = None


_GFL = HeadForm("GFL", "gfl_cls", "gfl_reg", "distribution", 1.0, 4.0)
FORMS = {
    "GFLHead": _GFL,
    "LDHead": _GFL,
    "RetinaHead": HeadForm("RetinaNet", "retina_cls", "retina_reg", "giou", 1.0, 1.0),
    "ATSSHead": HeadForm("ATSS", "atss_cls", "atss_reg", "giou", 1.0, 1.0, "atss_centerness"),
    "FCOSHead": HeadForm("FCOS", "conv_cls", "conv_reg", "iou", 0.4, 0.75),
}


@dataclass(slots=True)
class Prediction:
    """What a head says of one level.

    classes: logits (B, A · K, h, w).
    boxes: (B, A · 4, h, w), or GFL's logits (B, 4 · bins, h, w); FCOS's are distances in pixels.
    centerness: logits (B, A, h, w), where `HeadForm.centerness`.
    """

    classes: Tensor
    boxes: Tensor
    centerness: Tensor | None = None


def dense_head(what: str, name: str, member: nn.Module) -> Any:
    """The one-stage head of a detector.

    Raises: ConfigError when the member has none.
    """
    head = getattr(member, "bbox_head", None)
    if head is None or not hasattr(head, "prior_generator"):
        raise ConfigError(
            f"{what}: member {name!r}, a {type(member).__name__}, has no one-stage head 'bbox_head'; "
            "use a one-stage detector"
        )
    return head


def check_priors(what: str, teacher: Any, student: Any) -> None:
    """Check that two heads predict the same classes for the same cells and anchors.

    Raises: ConfigError, with what differs.
    """
    for name in ("cls_out_channels", "num_base_priors"):
        if getattr(teacher, name) != getattr(student, name):
            raise ConfigError(
                f"{what}: the teacher's head has {name}={getattr(teacher, name)} and the student's "
                f"{getattr(student, name)}; build both alike"
            )
    priors = [head.prior_generator for head in (teacher, student)]
    strides = [[tuple(s) for s in p.strides] for p in priors]
    same = strides[0] == strides[1]
    if same and hasattr(priors[0], "base_anchors"):
        same = all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(priors[0].base_anchors, priors[1].base_anchors))
    if not same:
        raise ConfigError(f"{what}: the heads have other strides or anchors; give both the same anchor_generator")


def rows(x: Tensor, width: int) -> Tensor:
    """(B, A · width, h, w) as (B · h · w · A, width): the order of mmdetection's anchors, image by image."""
    return x.permute(0, 2, 3, 1).reshape(-1, width)


def held_map(convs: nn.ModuleList, x: Tensor, index: int, *, activate: bool) -> Tensor:
    """A map (B, C, h, w) after `index` convolutions of a branch; the last one's ReLU is left out unless `activate`."""
    for number in range(1, index + 1):
        x = convs[number - 1](x, activate=activate or number < index)
    return x


def rest_of_head(head: Any, form: HeadForm, level: int, held: tuple[Tensor, Tensor], index: int) -> Prediction:
    """What a head makes of two maps that its convolution `index` would have given, ReLU included.

    Args:
        form: of the head, of `FORMS`.
        level: of the pyramid, from 0; some heads have a scale for each.
        held: maps of the branch of classes and that of boxes, (B, C, h, w).
    """
    x, y = held
    for conv in head.cls_convs[index:]:
        x = conv(x)
    for conv in head.reg_convs[index:]:
        y = conv(y)
    boxes = getattr(head, form.boxes)(y)
    if hasattr(head, "scales"):
        boxes = head.scales[level](boxes)
    if form.name == "FCOS":
        boxes = boxes.clamp(min=0) * float(head.strides[level]) if head.norm_on_bbox else boxes.exp()
    centerness = None if form.centerness is None else getattr(head, form.centerness)(y)
    return Prediction(getattr(head, form.classes)(x), boxes, centerness)


def rectified(x: Tensor, index: int) -> Tensor:
    """ReLU, as after a convolution; a map of the pyramid (index 0) as it is."""
    return F.relu(x) if index else x
