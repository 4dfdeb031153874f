"""The picture of sample grids: real images, then a grid a run, each with its cost and its figure."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from limbeck.leaderboard.pictures.panel_layout import PAPER, Cell, Line, lay_out
from limbeck.leaderboard.pictures.samples import Sampled, sampled_text
from limbeck.multimodal.diffusion.sheet import image_sheet

COLUMNS = 2  # grids side by side


def draw_samples(
    real: Tensor, grids: Sequence[Tensor], members: Sequence[Sampled], metric: str, classes: int, heading: str
) -> Image.Image:
    """Grids of `classes` columns.

    Args:
        real: uint8 (N, C, H, W), N a multiple of the classes.
        grids: (N, C, H, W) in [−1, 1], one a member.
        metric: the members' `value`.
    """
    cells = [Cell(image_sheet(real, classes), "real images")]
    cells += [
        Cell(image_sheet(grid, classes), sampled_text(one, metric)) for grid, one in zip(grids, members, strict=True)
    ]
    blank = Cell(Image.new("RGB", (1, 1), PAPER))
    cells += [blank] * (-len(cells) % COLUMNS)
    lines = [Line("", cells[start : start + COLUMNS]) for start in range(0, len(cells), COLUMNS)]
    return lay_out(heading, [""] * COLUMNS, lines, [], lambda entries, width, size: Image.new("RGB", (width, 1), PAPER))
