"""MGD: masked generative distillation (arXiv 2205.01529)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limbeck.engine.bridges import require_same_shape
from limbeck.engine.losses import check_maps
from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, UnknownName

MASKED = ("position", "channel")
LEVELS = tuple((f"neck.fpn_convs.{i}.conv", f"neck.fpn_convs.{i}.conv") for i in range(5))


def random_mask(
    shape: tuple[int, ...], ratio: float, generator: torch.Generator, *, mask_on: str = "position"
) -> Tensor:
    """D of zeros and ones, each zero with probability `ratio`, on the CPU.

    Args:
        shape: of the map, (B, C, H, W).
        ratio: λ in [0, 1].
        mask_on: 'position' gives (B, 1, H, W), one mask for all channels; 'channel' (B, C, 1, 1).
    Raises: UnknownName for another `mask_on`.

    >>> random_mask((2, 3, 4, 5), 0.0, torch.Generator()).mean().item()
    1.0
    """
    if mask_on not in MASKED:
        raise UnknownName("mask_on", mask_on, MASKED, "of MGD")
    batch, channels, height, width = shape
    size = (batch, 1, height, width) if mask_on == "position" else (batch, channels, 1, 1)
    return (torch.rand(size, generator=generator) >= ratio).float()  # drawn from [0, 1): a ratio of 1 leaves nothing


def mgd_loss(generated: Tensor, teacher: Tensor) -> Tensor:
    """Squared error of the generated map at all positions, masked or not: L = 1 / B · Σ_{b,c,h,w} (Ŝ − T)².

    It adds channels and positions up, so that it grows with the size of map and image.

    Args:
        generated, teacher: Ŝ, T (B, C, H, W), same shape. The teacher's gradient is stopped.
    Returns: scalar ≥ 0, computed in float32.
    Raises: ShapeMismatch when the two differ.

    >>> mgd_loss(torch.ones(2, 3, 4, 5), torch.zeros(2, 3, 4, 5)).item()
    60.0
    """
    require_same_shape(generated, teacher, "MGD")
    return (generated.float() - teacher.detach().float()).square().sum() / len(teacher)


class Generator(nn.Sequential):
    """g: 3×3 convolution, ReLU, 3×3 convolution, padded, of equal widths, with biases, as the framework draws them."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))


@METHODS.register_module()
class MGD(Method):
    """Makes the teacher's map from a part of the student's: taps maps of one size a level; the levels are added.

    L = Σ_levels `mgd_loss`(g(D ⊙ φ(S)), T). φ is a 1×1 convolution with a bias where widths differ; g is a `Generator`.
    Both are trained with the student and dropped with the link. D is drawn for every step and level; what it leaves is
    not scaled by 1 / (1 − λ). In detection the taps are the convolutions of the pyramid without norm or activation, all
    five of a one-stage detector (the default taps) or the first four, 'neck.fpn_convs.0.conv' …, of a two-stage one.

    Weights (α) and ratios (λ) of the official code, from the first step to the last:

    - RetinaNet, RepPoints, SOLO: 2e-5 and 0.65, the defaults here; Faster and Mask R-CNN: 5e-7 and 0.45;
    - segmentation, the last stage of the backbone: 2e-5 and 0.75;
    - classification, the last stage: 7e-5 and 0.15 with mask_on='channel'.

    They are of images of 800×1333 with 256 channels: as the loss is a sum, smaller maps want a larger weight.

    Args:
        ratio: λ in [0, 1], how much of the student's map is dropped.
        mask_on: what is dropped, 'position' or 'channel'.
        weight: α, factor on the term "generation".
        kwargs: see `Method`.
    Raises: ConfigError, UnknownName for options out of range.
    """

    default_taps = LEVELS
    bridges: nn.ModuleList
    generators: nn.ModuleList

    def __init__(self, *, ratio: float = 0.65, mask_on: str = "position", weight: float = 2e-5, **kwargs: Any) -> None:
        super().__init__(weight=weight, **kwargs)
        if not 0 <= ratio <= 1:
            raise ConfigError(f"MGD needs ratio in [0, 1]; got {ratio}")
        if mask_on not in MASKED:
            raise UnknownName("mask_on", mask_on, MASKED, "of MGD")
        self.ratio, self.mask_on = float(ratio), mask_on

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        pairs = list(zip(teacher_shapes, student_shapes, strict=True))
        for teacher, student in pairs:
            check_maps("MGD", teacher, student)
        self.bridges = nn.ModuleList(nn.Identity() if t[1] == s[1] else nn.Conv2d(s[1], t[1], 1) for t, s in pairs)
        self.generators = nn.ModuleList(Generator(t[1]) for t, _ in pairs)

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        draws, losses = batch.generator(), []
        for level, (student, teacher) in enumerate(zip(batch.student, batch.teacher, strict=True)):
            kept = random_mask(tuple(teacher.shape), self.ratio, draws, mask_on=self.mask_on).to(student.device)
            with torch.autocast(student.device.type, enabled=False):
                generated = self.generators[level](kept * self.bridges[level](student.float()))
            losses.append(mgd_loss(generated, teacher))
        return {"generation": torch.stack(losses).sum()}
