"""Which of two segmentation networks to believe: their errors, compared pixel by pixel and region by region."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.engine.losses import IGNORE, fit_labels, resize_bilinear
from limbeck.errors import ShapeMismatch


@dataclass(frozen=True, slots=True)
class Selection:
    """Where the peer may teach; h×w is the finer of the two logit grids.

    pixels: (B, h, w) bool: labelled, and the peer's error is the lower.
    regions: (B, G, G) bool: has a labelled pixel, and the peer's mean error over its labelled pixels is the lower.
    valid: (B, h, w) bool: labelled.
    """

    pixels: Tensor
    regions: Tensor
    valid: Tensor


def on_finer_grid(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps (B, C, H, W) of any widths on the finer of their grids, in float32; see `resize_bilinear`."""
    size = (max(a.shape[2], b.shape[2]), max(a.shape[3], b.shape[3]))
    return resize_bilinear(a, size), resize_bilinear(b, size)


@torch.no_grad()
def select(student: Tensor, teacher: Tensor, labels: Tensor, *, grid: int, margin: float = 0.0) -> Selection:
    """Where the teacher errs less than the student: ties and what has no label are in neither direction's selection.

    With ℓ_m(b, p) = −log softmax(z_m)_y at the labelled pixels of the common grid and e_m(b, r) its mean over those of
    region r: pixels ℓ_T < ℓ_S − margin, regions e_T < e_S. Pixel (i, j) is of region (⌊i G / h⌋, ⌊j G / w⌋).

    Args:
        student, teacher: logits (B, K, h, w), both on the common grid; see `on_finer_grid`.
        labels: (B, H, W) integer, 255 = ignore; brought to the common grid by nearest.
        grid: G, regions a side.
        margin: by how much a pixel's error must be lower; the regions have none.
    Raises: ShapeMismatch when labels do not fit.
    """
    y = labels_on_grid(labels, tuple(student.shape))
    valid = y != IGNORE
    ours, theirs = (F.cross_entropy(z.float(), y, ignore_index=IGNORE, reduction="none") for z in (student, teacher))
    count = region_sums(valid.float(), grid)
    # Both sums are over the same pixels, so the two means compare as the sums do.
    better = region_sums(theirs, grid) < region_sums(ours, grid)
    return Selection(pixels=valid & (theirs < ours - margin), regions=better & (count > 0), valid=valid)


def labels_on_grid(labels: Tensor, logits: tuple[int, ...]) -> Tensor:
    """Label maps (B, H, W) at the size of logits of shape (B, K, h, w), by nearest: int64 (B, h, w).

    Raises: ShapeMismatch when they are no integer maps of that batch.
    """
    if labels.dim() != 3 or labels.is_floating_point() or len(labels) != logits[0]:
        raise ShapeMismatch(
            f"CNNViTCollab: labels {tuple(labels.shape)} of {labels.dtype} do not fit logits {logits}; "
            f"integer label maps ({logits[0]}, H, W) would (mixed targets have no single class a pixel)"
        )
    return fit_labels("CNNViTCollab", labels, logits)


def region_sums(x: Tensor, grid: int) -> Tensor:
    """Sums of x (B, h, w) over G×G regions, (B, G, G); pixel (i, j) is of region (⌊i G / h⌋, ⌊j G / w⌋)."""
    rows, columns = (
        F.one_hot(torch.arange(n, device=x.device) * grid // n, grid).float() for n in (x.shape[1], x.shape[2])
    )
    # autocast would do the products in half precision
    with torch.autocast(x.device.type, enabled=False):
        return torch.einsum("ig,bij,jk->bgk", rows, x.float(), columns)


def region_means(x: Tensor, grid: int) -> Tensor:
    """Means of x (B, h, w) over G×G regions, (B, G, G); 0 in a region without a pixel."""
    return region_sums(x, grid) / region_sums(torch.ones_like(x), grid).clamp(min=1.0)
