"""The picture of masks over training: heat maps on one fixed scale from 0 to 1, and how far the masks moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from limbeck.leaderboard.pictures.panel_layout import (
    GAP,
    INK,
    LETTERS,
    PAPER,
    SOFT,
    Cell,
    Colour,
    Line,
    fitted,
    lay_out,
    stacked,
)

if TYPE_CHECKING:
    from limbeck.leaderboard.pictures.mask_run import Seen
    from limbeck.leaderboard.pictures.masks import Curves

# viridis at 0, ¼, ½, ¾ and 1: lightness rises with the value, whatever hues one sees
ANCHORS = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], float)
LINES: Sequence[Colour] = ((0, 114, 178), (230, 120, 0), (0, 140, 100), (190, 90, 150), (90, 90, 90), (150, 110, 20))
PLOT, MARGIN = (440, 230), (72, 34)  # pixels: size of a plot; room on its left, and above and below
FINE = 2  # plots are drawn larger by it and shrunk, so that lines are smooth


def heat(values: np.ndarray) -> np.ndarray:
    """Colours of values from 0 to 1, uint8 (…, 3); the scale never depends on the values."""
    steps = np.linspace(0.0, 1.0, len(ANCHORS))
    channels = [np.interp(values, steps, ANCHORS[:, channel]) for channel in range(3)]
    return np.stack(channels, -1).round().astype(np.uint8)


def draw_masks(
    seen: Seen, epochs: Sequence[int], chosen: Sequence[int], curves: Mapping[str, Curves], heading: str
) -> Image.Image:
    """For each image the mean of the finest level's spatial masks and some of them, a column an epoch; below, plots.

    Args:
        epochs: that are drawn; 0 is before the first step.
        chosen: masks that are drawn beside the mean.
        curves: by kind.
    """
    masks = seen.spatial()
    lines = []
    for place, (sample, image) in enumerate(zip(seen.samples, seen.images, strict=True)):
        picture = fitted(image, smooth=True)
        for index in (None, *chosen):
            count = len(masks[0][place])
            name = f"mean of {count} masks" if index is None else f"mask {index + 1} of {count}"
            shown = [masks[epoch][place] for epoch in epochs]
            maps = [mask.mean(0) if index is None else mask[index] for mask in shown]
            lines.append(Line(f"val sample {sample}: {name}", [Cell(picture), *(_cell(m, picture.size) for m in maps)]))
    titles = ["image", *("before training" if epoch == 0 else f"after epoch {epoch}" for epoch in epochs)]
    page = lay_out(heading, titles, lines, [], lambda entries, width, size: Image.new("RGB", (width, 1), PAPER))
    return stacked([page, _scale(seen.ranges()), _plots(curves, seen.levels)])


def _cell(values: np.ndarray, size: tuple[int, int]) -> Cell:
    """A map at the size of its image, every cell of it a block, and the values that it really has."""
    picture = Image.fromarray(heat(values)).resize(size, Image.Resampling.NEAREST)
    return Cell(picture, f"{values.min():.3f} to {values.max():.3f}")


def _scale(ranges: Sequence[tuple[float, float]], width: int = 400) -> Image.Image:
    """The colours from 0 to 1, and beside them a bar for each mask from its smallest to its largest value."""
    font, row = ImageFont.load_default(LETTERS), LETTERS + 6
    page = Image.new("RGB", (2 * GAP + width + 400, (len(ranges) + 4) * row), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((GAP, 0), "colours of mask values", fill=INK, font=font)
    strip = heat(np.linspace(0.0, 1.0, width)[None].repeat(LETTERS, 0))
    page.paste(Image.fromarray(strip), (GAP, row))
    for value in (0.0, 0.5, 1.0):
        anchor = {0.0: "la", 0.5: "ma", 1.0: "ra"}[value]
        draw.text((GAP + value * (width - 1), 2 * row - 4), f"{value:g}", fill=INK, font=font, anchor=anchor)
    for place, (low, high) in enumerate(ranges):
        top = (3 + place) * row
        draw.line((GAP, top + row // 2, GAP + width, top + row // 2), fill=(220, 220, 220))
        draw.rectangle(
            (GAP + low * (width - 1), top + 3, GAP + max(high * (width - 1), low * (width - 1) + 1), top + row - 4),
            fill=SOFT,
        )
        said = f"mask {place + 1}: reached {low:.3f} to {high:.3f}"
        draw.text((2 * GAP + width, top), said, fill=INK, font=font)
    return page


def _plots(curves: Mapping[str, Curves], levels: Sequence[str]) -> Image.Image:
    """For each kind of masks the change from the start and the mean, a line a level, and the names of the lines."""
    made = []
    for kind, found in curves.items():
        top = max(max(line) for line in found.change) or 1.0
        made.append(_plot(f"{kind} masks: mean absolute change from the start", found.change, top))
        made.append(_plot(f"{kind} masks: mean value", found.mean, 1.0))
    columns = 2
    rows = -(-len(made) // columns)
    font, key = ImageFont.load_default(LETTERS), 2 * LETTERS
    page = Image.new("RGB", (GAP + columns * (PLOT[0] + GAP), rows * (PLOT[1] + GAP) + key), PAPER)
    for place, plot in enumerate(made):
        page.paste(plot, (GAP + place % columns * (PLOT[0] + GAP), place // columns * (PLOT[1] + GAP)))
    draw, left = ImageDraw.Draw(page), GAP
    for place, name in enumerate(levels):
        draw.line(
            (left, page.height - key + 8, left + 20, page.height - key + 8), fill=LINES[place % len(LINES)], width=3
        )
        draw.text((left + 26, page.height - key), name, fill=INK, font=font)
        left += 26 + round(font.getlength(name)) + 2 * GAP
    return page


def _plot(title: str, lines: Sequence[Sequence[float]], top: float) -> Image.Image:
    """Values from 0 to `top` by epoch from 0."""
    font = ImageFont.load_default(LETTERS * FINE)
    width, height = (side * FINE for side in PLOT)
    left, edge = (side * FINE for side in MARGIN)
    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    last = max(1, len(lines[0]) - 1)

    def at(epoch: float, value: float) -> tuple[float, float]:
        return left + epoch / last * (width - left - 8 * FINE), height - edge - value / top * (height - 2 * edge)

    draw.text((0, 0), title, fill=INK, font=font)
    for share in (0.0, 0.5, 1.0):
        x, y = at(0, share * top)
        draw.line((x, y, at(last, 0)[0], y), fill=(220, 220, 220), width=FINE)
        draw.text((x - 6 * FINE, y), f"{share * top:.2g}", fill=SOFT, font=font, anchor="rm")
    for epoch in sorted({0, last // 2, last}):
        x, y = at(epoch, 0)
        text, anchor = (f"epoch {epoch}", "ra") if epoch == last else (str(epoch), "ma")
        draw.text((x, y + 6 * FINE), text, fill=SOFT, font=font, anchor=anchor)
    for place, line in enumerate(lines):
        points = [at(epoch, value) for epoch, value in enumerate(line)]
        draw.line(points, fill=LINES[place % len(LINES)], width=2 * FINE, joint="curve")
    return page.resize(PLOT, Image.Resampling.LANCZOS)
