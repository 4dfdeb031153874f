"""Ground-truth boxes as masks of foreground and background on the maps of a pyramid (FGD, arXiv 2111.11837)."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.detection.targets import DetectionTargets
from limbeck.errors import UnknownName

BOX_SCALES = ("img_shape", "pad_shape")


def box_cells(boxes: Tensor, images: Tensor, size: tuple[int, int]) -> Tensor:
    """First and last column and row of the cells that boxes cover: x1, y1 rounded down, x2, y2 up, both inclusive.

    In float64 and multiplied first, so that a corner on a cell's border stays there whatever the image's width.

    Args:
        boxes: x1 y1 x2 y2 in pixels, (B, M, 4).
        images: height and width (B, 2) that the map stands for.
        size: height and width of the map.
    Returns: (B, M, 4) int64, x1 y1 x2 y2 in cells; not clipped by the map.

    >>> box_cells(torch.tensor([[[16.0, 8.0, 31.0, 16.0]]]), torch.tensor([[32, 64]]), (4, 8)).flatten().tolist()
    [2, 1, 4, 2]
    """
    height, width = images.double().unbind(1)
    whole = torch.stack([width, height, width, height], dim=1)[:, None]
    cells = torch.tensor([size[1], size[0]] * 2, device=boxes.device, dtype=torch.float64)
    scaled = boxes.double() * cells / whole
    return torch.cat([scaled[..., :2].floor(), scaled[..., 2:].ceil()], dim=2).long()


def box_masks(boxes: Tensor, valid: Tensor, images: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """M^fg, at each cell the largest 1 / area of the boxes that cover it; M^bg, 1 / their number where none does.

    A box's area is that of all its cells, those outside the map too. M^fg is 0 where no box is, and M^bg where one is;
    M^bg adds up to 1, or is 0 everywhere when boxes cover the map.

    Args:
        boxes, images, size: see `box_cells`.
        valid: (B, M) bool, boxes that count.
    Returns: M^fg and M^bg, (B, H, W) float32 each.
    """
    x1, y1, x2, y2 = box_cells(boxes, images, size).unbind(2)  # (B, M) each
    rows, columns = (torch.arange(n, device=boxes.device) for n in size)
    in_row = (rows >= y1[..., None]) & (rows <= y2[..., None]) & valid[..., None]
    in_column = (columns >= x1[..., None]) & (columns <= x2[..., None])
    # A box upside down covers no cell; its area is of no account but must not be 0.
    weight = 1.0 / ((y2 - y1 + 1).clamp(min=1) * (x2 - x1 + 1).clamp(min=1)).float()
    weighted = (in_row * weight[..., None])[..., None] * in_column[:, :, None]
    foreground = weighted.amax(1) if weighted.shape[1] else weighted.new_zeros(len(boxes), *size)
    free = (foreground == 0).float()
    return foreground, free / free.sum((1, 2), keepdim=True).clamp(min=1)


def target_masks(targets: DetectionTargets, size: tuple[int, int], *, box_scale: str) -> tuple[Tensor, Tensor]:
    """`box_masks` of a batch's targets: padding and crowds do not count.

    Args:
        box_scale: 'img_shape' takes the map for the image without padding, as the official code; 'pad_shape' for the
            padded one, which it covers.
    Raises: UnknownName for another `box_scale`.
    """
    if box_scale not in BOX_SCALES:
        raise UnknownName("box_scale", box_scale, BOX_SCALES, "of FGD")
    valid = targets.labels >= 0
    if targets.crowd is not None:
        valid = valid & ~targets.crowd
    images = targets.shapes
    if box_scale == "pad_shape":
        images = torch.tensor(targets.input_shape, device=images.device).expand_as(images)
    return box_masks(targets.boxes, valid, images, size)
