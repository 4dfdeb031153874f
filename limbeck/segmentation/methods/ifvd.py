"""IFVD: intra-class feature variation distillation for semantic segmentation (Wang et al., ECCV 2020)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.engine.losses import IGNORE, check_maps, fit_labels
from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS

EPS = 1e-8


def ifvd_loss(student: Tensor, teacher: Tensor, labels: Tensor, *, mask_ignore: bool = False) -> Tensor:
    """Squared difference of how much each position is like the mean of its class.

    With μ_{b,k} the mean of the features of image b over the positions of class k, of each side its own, and
    v_p = cos(f_p, μ_{b, y(p)}): L = mean over all positions of (v_S − v_T)². An ignored position has v = 1 on both
    sides and adds 0. The gradient passes through the student's means too.

    Args:
        student, teacher: maps (B, C_S, h, w) and (B, C_T, h, w). The teacher's gradient is stopped.
        labels: label maps (B, H, W), integer, 255 = ignore; brought to the maps' size by nearest.
        mask_ignore: divide by the number of labelled positions instead (ours).
    Returns: scalar in [0, 4], computed in float32; 0, with a graph, where nothing has a label.
    Raises: ShapeMismatch when maps or labels do not fit.

    >>> x = torch.tensor([[[[2.0, 2.0, 1.0]], [[1.0, 1.0, 9.0]]]])  # constant in each class: both sides have v = 1
    >>> ifvd_loss(x, torch.ones(1, 3, 1, 3), torch.tensor([[[0, 0, 4]]])).item() < 1e-12
    True
    """
    check_maps("IFVD", tuple(teacher.shape), tuple(student.shape))
    y = fit_labels("IFVD", labels, tuple(teacher.shape)).flatten(1)
    valid = (y != IGNORE) & (y >= 0)
    classes = torch.arange(max(int(torch.where(valid, y, 0).max()), 0) + 1, device=y.device)
    members = ((y[:, None] == classes[:, None]) & valid[:, None]).float()
    with torch.autocast(student.device.type, enabled=False):
        gap = class_similarity(student.float(), members) - class_similarity(teacher.detach().float(), members)
    # Both similarities are 0 where no class is: the difference is that of 1 and 1.
    count = valid.sum().clamp(min=1) if mask_ignore else valid.numel()
    return gap.square().sum() / count


def class_similarity(features: Tensor, members: Tensor) -> Tensor:
    """Cosine between the feature of each position and the mean feature of its class in its image.

    Args:
        features: (B, C, h, w), float32.
        members: (B, K, h · w), 1 at the positions of the class, else 0; at most one class a position.
    Returns: (B, h · w); 0 at positions without class.
    """
    f = features.flatten(2)
    means = f @ members.transpose(1, 2) / (members.sum(2)[:, None] + 1e-6)  # (B, C, K); 0 for a class that is absent
    along = F.normalize(means, dim=1, eps=EPS).transpose(1, 2) @ f
    return (along * members).sum(1) / f.norm(dim=1).clamp(min=EPS)


@METHODS.register_module()
class IFVD(Method):
    """Variation within classes: taps the map before the classifier of each side, (B, C_T, h, w) and (B, C_S, h, w).

    Only similarities are compared, so there is no bridge and widths may differ. There are no default taps, as they
    depend on the heads: 'decode_head.bottleneck' of PSPNet and DeepLabV3, 'decode_head.sep_bottleneck' of DeepLabV3+,
    'decode_head.fusion_conv' of SegFormer, all before drop-out (the official map is after it).

    The default weight is that of CIRKD's code (arXiv 2204.06986), which adds pixel KD at temperature 1 and weight 1 and
    an adversarial term: the links `dict(type='KD', temperature=1.0, weight=1.0)` and
    `dict(type='SKD', pair_weight=0.0, holistic=True, taps=[('logits', 'logits')])`. The official run has 200, with a KD
    averaged over all entries of weight 10, which at 19 classes is pixel KD of weight 0.53.

    Args:
        mask_ignore: average over labelled positions alone.
        weight: factor on the term "variation".
        kwargs: see `Method`.
    """

    def __init__(self, *, mask_ignore: bool = False, weight: float = 20.0, **kwargs: Any) -> None:
        super().__init__(weight=weight, **kwargs)
        self.mask_ignore = mask_ignore

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        for teacher, student in zip(teacher_shapes, student_shapes, strict=True):
            check_maps("IFVD", teacher, student)

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        pairs = zip(batch.student, batch.teacher, strict=True)
        losses = [ifvd_loss(s, t, batch.targets, mask_ignore=self.mask_ignore) for s, t in pairs]
        return {"variation": torch.stack(losses).sum()}
