"""Generated images side by side on one picture."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from limbeck.errors import ConfigError
from limbeck.multimodal.diffusion.evaluation.features import to_pixels

CELL = 56  # pixels: images are drawn as large as whole factors of their size go into it


def image_sheet(
    images: Tensor, columns: int, *, places: Sequence[int] | None = None, cell: int = CELL, gap: int = 2
) -> Image.Image:
    """Images in reading order, each pixel a square, between white gaps.

    Args:
        images: (N, C, H, W), float in [−1, 1] or uint8; of 1 or 3 channels.
        columns: cells a row.
        places: (N,) the cell of each image; the others stay white. None takes the first N.
        cell: pixels of the longer side, roughly; larger images keep their size.
    Raises: ConfigError for other images, or no place for one.
    """
    if images.ndim != 4 or not len(images) or images.shape[1] not in (1, 3) or columns < 1:
        raise ConfigError(
            f"a sheet is of images (N, 1 or 3, H, W) in one column or more; got {tuple(images.shape)} in {columns}"
        )
    where = list(range(len(images))) if places is None else list(places)
    if len(where) != len(images) or min(where) < 0:
        raise ConfigError(f"a sheet has a place for each of its {len(images)} images; got {where}")
    pixels = to_pixels(images.detach().cpu()) if images.is_floating_point() else images.cpu()
    factor = max(1, cell // max(images.shape[2:]))
    height, width = (side * factor for side in images.shape[2:])
    rows = max(where) // columns + 1
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "white")
    for one, place in zip(pixels, where):
        row, column = divmod(place, columns)
        picture = Image.fromarray(one.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
        large = picture.resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(large, (gap + column * (width + gap), gap + row * (height + gap)))
    return sheet
