"""SKD: structured knowledge distillation for semantic segmentation (arXiv 1903.04197)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import spectral_norm

from limbeck.engine.losses import RESIZED, check_logits, check_maps, fit_logits
from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch

EPS = 1e-8
WIDTHS = (64, 128, 256, 512)
SLOPE = 0.1
DISCRIMINATOR_WEIGHT = 0.1


def pair_wise_loss(
    student: Tensor, teacher: Tensor, *, kernel: int = 2, ratio: float | None = None, detach_norm: bool = False
) -> Tensor:
    """Squared difference of the cosine similarities between all pairs of nodes of an image.

    Nodes are the N cells of a max-pooled map, u_i their vectors divided by their norms, A_ij = u_i · u_j:
    L = 1 / (B N²) · Σ (A_S − A_T)², i = j included.

    Args:
        student, teacher: maps (B, C_S, h, w) and (B, C_T, h, w). The teacher's gradient is stopped.
        kernel: cells of kernel × kernel positions, those at the end cut off; 1 takes every position.
        ratio: in (0, 1], in the place of `kernel`: cells of ⌊ratio h⌋ × ⌊ratio w⌋.
        detach_norm: take the norms as constants, as the official code.
    Returns: scalar in [0, 4], computed in float32.
    Raises: ShapeMismatch when batch, height or width differ.

    >>> x = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])  # two positions at a right angle, against two equal ones
    >>> round(pair_wise_loss(x, torch.ones(1, 3, 1, 2), kernel=1).item(), 3)
    0.5
    """
    check_maps("SKD", tuple(teacher.shape), tuple(student.shape))
    cell = _cell((student.shape[2], student.shape[3]), kernel, ratio)
    with torch.autocast(student.device.type, enabled=False):
        u = _nodes(student.float(), cell, detach_norm=detach_norm)
        v = _nodes(teacher.detach().float(), cell, detach_norm=False)
        difference = torch.baddbmm(v.transpose(1, 2) @ v, u.transpose(1, 2), u, beta=-1.0)
        return difference.square().mean()


def _cell(size: tuple[int, int], kernel: int, ratio: float | None) -> tuple[int, int]:
    if ratio is None:
        return kernel, kernel
    return max(1, int(ratio * size[0])), max(1, int(ratio * size[1]))


def _nodes(x: Tensor, cell: tuple[int, int], *, detach_norm: bool) -> Tensor:
    """Unit vectors of the cells of a map (B, C, h, w): (B, C, N)."""
    x = F.max_pool2d(x, cell, stride=cell, ceil_mode=True).flatten(2)
    if not detach_norm:
        return F.normalize(x, dim=1, eps=EPS)
    return x / (x.detach().norm(dim=1, keepdim=True) + EPS)


def discriminator_loss(student_scores: Tensor, teacher_scores: Tensor) -> Tensor:
    """Hinge loss, mean max(0, 1 − D(z_T)) + mean max(0, 1 + D(z_S)), of scores of any shape; a scalar ≥ 0."""
    return F.relu(1.0 - teacher_scores).mean() + F.relu(1.0 + student_scores).mean()


class SelfAttention(nn.Module):
    """x + γ · attention over all positions of x (B, C, h, w), with keys of C / 8 channels; γ starts at 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query, self.key = (nn.Conv2d(channels, channels // 8, 1) for _ in range(2))
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (conv(x).flatten(2) for conv in (self.query, self.key, self.value))
        attention = (query.transpose(1, 2) @ key).softmax(dim=2)
        return x + self.gamma * (value @ attention.transpose(1, 2)).view_as(x)


class Discriminator(nn.Sequential):
    """Logits (B, K, h, w) to scores (B, 1, h', w'), high for the teacher's; it does not see the image.

    Batch norm with the statistics of the batch at hand, D stages (spectrally normalised 4×4 convolution of stride 2,
    LeakyReLU 0.1) to 64, 128, 256 and 512 channels, self-attention after the last two, a 4×4 convolution. Officially
    D = 4, which needs logits of 64×64. ASSUMPTION: D is at most ⌊log2(min(h, w) / 4)⌋, so that the last one fits.

    Raises: ShapeMismatch for logits smaller than 8×8.
    """

    def __init__(self, classes: int, size: tuple[int, int]) -> None:
        depth = min(len(WIDTHS), (min(size) // 4).bit_length() - 1)
        if depth < 1:
            raise ShapeMismatch(
                f"SKD: teacher logits of {size[0]}×{size[1]} are too small for the discriminator; "
                "8×8 or more would fit, or holistic=False"
            )
        layers: list[nn.Module] = [nn.BatchNorm2d(classes, track_running_stats=False)]
        for i, (before, after) in enumerate(zip((classes, *WIDTHS), WIDTHS[:depth])):
            layers += [spectral_norm(nn.Conv2d(before, after, 4, stride=2, padding=1)), nn.LeakyReLU(SLOPE)]
            if i >= depth - 2:
                layers.append(SelfAttention(after))
        super().__init__(*layers, nn.Conv2d(WIDTHS[depth - 1], 1, 4))


@METHODS.register_module()
class SKD(Method):
    """Similarities between the positions of an image, and optionally a discriminator on the logits.

    Taps, in this order: the maps before both classifiers, (B, C_T, h, w) and (B, C_S, h, w), unless `pair_weight` is 0;
    with `holistic=True` the logits (B, K, h, w). There are no default taps, as they depend on the heads:
    'decode_head.bottleneck' of PSPNet and DeepLabV3, 'decode_head.sep_bottleneck' of DeepLabV3+,
    'decode_head.fusion_conv' of SegFormer, all before drop-out.

    - "pair": `pair_weight` · `pair_wise_loss`; no bridge, widths may differ.
    - "adversarial": −`adversarial_weight` · mean D(z_S), which trains the student alone.
    - "discriminator": 0.1 · `discriminator_loss`, which trains D alone, by an Adam of its own (officially at a rate
      that follows the poly schedule). D is dropped with the link.

    The pixel-wise term is a link of its own, `dict(type='KD', temperature=1.0, weight=1.0)`. With `pair_weight=0.0`
    this link is the adversarial term that CIRKD's code adds to CWD and IFVD.

    Defaults are those of CIRKD's code (arXiv 2204.06986). The official run has `ratio=0.5`, `detach_norm=True`,
    `pair_weight=0.5`, a pixel-wise term that is 10 times the sum over the batch, and `adversarial_weight=0.1` with a
    gradient penalty (WGAN-GP) in place of the hinge, which is not here; in the paper D sees the image too.

    Args:
        taps: one pair a part.
        pair_weight: factor on "pair"; 0 leaves it out.
        kernel, ratio, detach_norm: see `pair_wise_loss`.
        holistic: add the discriminator and its two terms.
        adversarial_weight: > 0, factor on "adversarial".
        weight: factor on all terms.
        kwargs: see `Method`.
    Raises: ConfigError for an option out of range and for missing taps.
    """

    optimizer = dict(type="Adam", lr=4e-4, betas=(0.9, 0.99))
    own_terms = frozenset({"discriminator"})
    discriminator: Discriminator

    def __init__(
        self,
        *,
        taps: Sequence[Sequence[str]] | None = None,
        pair_weight: float = 10.0,
        kernel: int = 2,
        ratio: float | None = None,
        detach_norm: bool = False,
        holistic: bool = False,
        adversarial_weight: float = 0.001,
        weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        parts = [*(["features"] if pair_weight else []), *(["logits"] if holistic else [])]
        if not pair_weight >= 0 or not adversarial_weight > 0 or not parts:
            raise ConfigError(
                "SKD needs pair_weight >= 0, above 0 unless holistic=True, and adversarial_weight > 0; "
                f"got {pair_weight} and {adversarial_weight}"
            )
        if kernel < 1 or (ratio is not None and not 0 < ratio <= 1):
            raise ConfigError(f"SKD needs kernel >= 1 and ratio in (0, 1]; got {kernel} and {ratio}")
        if taps is None or len(taps) != len(parts):
            raise ConfigError(f"SKD needs one pair of taps for {' and one for '.join(parts)}, in order; got {taps!r}")
        super().__init__(taps=taps, weight=weight, **kwargs)
        self.parts = parts
        self.pair_weight, self.adversarial_weight = float(pair_weight), float(adversarial_weight)
        self.kernel, self.ratio, self.detach_norm, self.holistic = kernel, ratio, detach_norm, holistic

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        shapes = dict(zip(self.parts, zip(teacher_shapes, student_shapes, strict=True)))
        if self.pair_weight:
            check_maps("SKD", *shapes["features"])
        if self.holistic:
            teacher, student = shapes["logits"]
            check_logits("SKD", teacher, student, axes=(4,))
            self.discriminator = Discriminator(teacher[1], (teacher[2], teacher[3]))
            notes = [
                "The discriminator has fewer stages, for small logits." if min(teacher[2:]) < 64 else "",
                RESIZED if teacher[2:] != student[2:] else "",
            ]
            self.assumption = " ".join(filter(None, notes))  # type: ignore[misc]  # of this pair alone

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        taps = dict(zip(self.parts, zip(batch.student, batch.teacher, strict=True)))
        terms: dict[str, Tensor] = {}
        if self.pair_weight:
            options = {"kernel": self.kernel, "ratio": self.ratio, "detach_norm": self.detach_norm}
            terms["pair"] = self.pair_weight * pair_wise_loss(*taps["features"], **options)
        if self.holistic:
            terms |= self._holistic(*taps["logits"])
        return terms

    def _holistic(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        student, teacher = fit_logits(student, teacher).float(), teacher.detach().float()
        constants = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        with torch.autocast(student.device.type, enabled=False):
            fooled = functional_call(self.discriminator, constants, (student,)).mean()
            # Apart, so that each side is normalised by its own statistics.
            scores = self.discriminator(student.detach()), self.discriminator(teacher)
        return {
            "adversarial": -self.adversarial_weight * fooled,
            "discriminator": DISCRIMINATOR_WEIGHT * discriminator_loss(*scores),
        }
