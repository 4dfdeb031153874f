"""Layout of a picture beside the page: rows of images under titles, and the legends below."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
# names with colours, width in pixels and size of the letters: a page of at least that width
Legend = Callable[[Sequence[tuple[str, Colour]], int, int], Image.Image]

READABLE, LARGEST = 256, 384  # pixels: smaller images are drawn larger by a whole factor, larger ones are shrunk
LETTERS, GAP = 15, 10
INK, SOFT, PAPER = (32, 32, 32), (96, 96, 96), (255, 255, 255)


@dataclass(frozen=True)
class Cell:
    """An image at the size that it is drawn at, and the line below it."""

    picture: Image.Image
    note: str = ""


@dataclass(frozen=True)
class Line:
    """A row of the picture."""

    caption: str
    cells: list[Cell]


def fitted(pixels: np.ndarray, *, smooth: bool = False) -> Image.Image:
    """uint8 (H, W, 3) as an image of a readable size; class maps are never smoothed."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    longest = max(image.size)
    if longest > LARGEST:
        width, height = (max(1, round(side * LARGEST / longest)) for side in image.size)
        return image.resize((width, height), Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST)
    factor = max(1, READABLE // longest)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def lay_out(
    heading: str,
    titles: Sequence[str],
    lines: Sequence[Line],
    keys: Sequence[Sequence[tuple[str, Colour]]],
    legend: Legend,
) -> Image.Image:
    """Heading, column titles, the lines, and the legends below; each column is as wide as its widest image or text."""
    font = ImageFont.load_default(LETTERS)
    columns = [list(column) for column in zip(*(line.cells for line in lines), strict=True)]
    widths = [
        max(
            *(max(cell.picture.width, round(font.getlength(cell.note))) for cell in column),
            round(font.getlength(title)),
        )
        for title, column in zip(titles, columns, strict=True)
    ]
    row = LETTERS + GAP
    heights = [row + max(cell.picture.height for cell in line.cells) + row + GAP for line in lines]
    width = sum(widths) + GAP * (len(widths) + 1)
    legends = [legend(entries, width, LETTERS) for entries in keys if entries]
    page = Image.new("RGB", (max([width, *(e.width for e in legends)]), 2 * row + GAP + sum(heights)), PAPER)
    draw = ImageDraw.Draw(page)
    lefts = [GAP + sum(widths[:place]) + GAP * place for place in range(len(widths))]
    draw.text((GAP, GAP), heading, fill=INK, font=font)
    for left, title in zip(lefts, titles):
        draw.text((left, GAP + row), title, fill=INK, font=font)
    top = GAP + 2 * row
    for line, height in zip(lines, heights):
        draw.text((GAP, top), line.caption, fill=SOFT, font=font)
        for left, cell in zip(lefts, line.cells):
            page.paste(cell.picture, (left, top + row))
            draw.text((left, top + row + cell.picture.height + 3), cell.note, fill=INK, font=font)
        top += height
    return stacked([page, *legends])


def stacked(parts: Sequence[Image.Image]) -> Image.Image:
    """Images one below the other, on the left."""
    page = Image.new("RGB", (max(p.width for p in parts), sum(p.height for p in parts)), PAPER)
    top = 0
    for part in parts:
        page.paste(part, (0, top))
        top += part.height
    return page
