"""The picture of chosen images: a row a method, a column a round, each a contact sheet in order of choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from limbeck.leaderboard.pictures.chosen import Chooser
from limbeck.leaderboard.pictures.panel_layout import PAPER, Cell, Line, lay_out

if TYPE_CHECKING:
    from limbeck.leaderboard.pictures.chosen_run import Pool

COLUMNS, SIDE = 5, 64  # of a sheet: images a row, and pixels of a cell


def draw_chosen(members: Sequence[Chooser], pool: Pool, heading: str) -> Image.Image:
    """Every member's first choices, and how many classes are among them."""
    from limbeck.multimodal.vlm.sheet import contact_sheet

    most = max(len(one.rounds) for one in members)
    blank = Image.new("RGB", (1, 1), PAPER)
    lines = []
    for one in members:
        cells = [
            Cell(
                contact_sheet(_readable(pool.images(r.ids[: r.shown])), columns=COLUMNS, cell=SIDE),
                _figures(r.shown, len(r.ids), r.covered, len(pool.classes)),
            )
            for r in one.rounds
        ]
        cells += [Cell(blank)] * (most - len(cells))
        lines.append(Line(f"{one.method}: chosen by {one.strategy}, seed {one.seed}", cells))
    titles = [f"round {number}" for number in range(1, most + 1)]
    return lay_out(heading, titles, lines, [], lambda entries, width, size: Image.new("RGB", (width, 1), PAPER))


def _figures(shown: int, chosen: int, covered: int, classes: int) -> str:
    first = f"first {shown} of {chosen}" if shown < chosen else f"all {chosen}"
    return f"{first}; {covered} of {classes} classes"


def _readable(images: Any) -> Any:
    """Pixels (n, C, H, W) of small images larger by a whole factor, each a block; files as they are."""
    if not isinstance(images, np.ndarray):
        return images
    factor = max(1, SIDE // max(images.shape[2:]))
    return images.repeat(factor, 2).repeat(factor, 3)
