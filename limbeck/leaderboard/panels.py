"""Panels: the picture of examples, a row an image and a column a member; one drawing function a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from limbeck.engine.config import PLAIN
from limbeck.leaderboard.examples import BEST

if TYPE_CHECKING:
    from limbeck.leaderboard.example_images import Shown

Colour = tuple[int, int, int]
# names with colours, width in pixels and size of the letters: a page of at least that width
Legend = Callable[[Sequence[tuple[str, Colour]], int, int], Image.Image]
# samples, heading, titles by member, data set, legend
Draw = Callable[[Sequence["Shown"], str, Mapping[str, str], Any, Legend], Image.Image]

READABLE, LARGEST = 256, 384  # pixels: smaller images are drawn larger by a whole factor, larger ones are shrunk
LETTERS, GAP = 15, 10
INK, SOFT, PAPER = (32, 32, 32), (96, 96, 96), (255, 255, 255)
IGNORE = 255
GAINED, LOST, SAME, IGNORED = range(4)
# light green, dark red, middle grey: told apart by lightness where hues are not
DIFFERENCE = np.array([(96, 205, 96), (186, 24, 40), (150, 150, 150), (0, 0, 0)], np.uint8)
WHY = {"random": "drawn at random", "difference": "among the largest differences"}


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


def draw_segmentation(
    shown: Sequence[Shown], heading: str, titles: Mapping[str, str], dataset: Any, legend: Legend
) -> Image.Image:
    """Image, truth, each member's class map with its mIoU and pixel accuracy, and where plain and best differ.

    Args:
        shown: of `SegmentationAdapter`: `data` has inputs uint8 (1, 3, H, W); a prediction has pred and labels, both
            uint8 (1, H, W), 255 in labels for pixels that are no class.
        dataset: has `classes` and `palette`.
    """
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(dataset.palette)] = dataset.palette
    lines, seen = [], set()
    for one in shown:
        maps = {member: found[0]["pred"][0].numpy() for member, found in one.predictions.items()}
        labels = one.predictions[PLAIN][0]["labels"][0].numpy()
        seen |= {int(value) for found in (labels, *maps.values()) for value in np.unique(found)}
        differs = difference(labels, maps[PLAIN], maps[BEST])
        cells = [
            Cell(_fitted(one.data["inputs"][0].permute(1, 2, 0).numpy(), smooth=True)),
            Cell(_fitted(colours[labels])),
        ]
        cells += [Cell(_fitted(colours[found]), _figures(one.metrics[member])) for member, found in maps.items()]
        cells.append(Cell(_fitted(DIFFERENCE[differs]), _shares(differs)))
        lines.append(Line(f"test sample {one.sample}: {WHY[one.chosen]}", cells))
    names = [(name, dataset.palette[index]) for index, name in enumerate(dataset.classes) if index in seen]
    signs = ["best student right, plain wrong", "plain student right, best wrong", "both right or both wrong"]
    signs += ["ignored"] if IGNORE in seen else []
    keys = [names, [(text, _colour(row)) for text, row in zip(signs, DIFFERENCE)]]
    return _page(heading, ["image", "truth", *titles.values(), "where students differ"], lines, keys, legend)


PANELS: Mapping[str, Draw] = {"semantic-segmentation": draw_segmentation}


def difference(labels: np.ndarray, plain: np.ndarray, best: np.ndarray) -> np.ndarray:
    """GAINED where best alone is right, LOST where plain alone is, SAME elsewhere, IGNORED where labels are 255.

    Args:
        labels, plain, best: classes of pixels (H, W).
    Returns: uint8 (H, W).
    """
    hit, base = best == labels, plain == labels
    found = np.select([labels == IGNORE, hit & ~base, base & ~hit], [IGNORED, GAINED, LOST], SAME)
    return found.astype(np.uint8)


def _shares(differs: np.ndarray) -> str:
    counted = max(1, int((differs != IGNORED).sum()))
    gained, lost = (100.0 * int((differs == kind).sum()) / counted for kind in (GAINED, LOST))
    return f"green {gained:.1f} %, red {lost:.1f} %"


def _figures(metrics: Mapping[str, float]) -> str:
    return f"mIoU {metrics['mIoU']:.1f}, pixels {metrics['aAcc']:.1f} %"


def _colour(row: np.ndarray) -> Colour:
    red, green, blue = row.tolist()
    return red, green, blue


def _fitted(pixels: np.ndarray, *, smooth: bool = False) -> Image.Image:
    """uint8 (H, W, 3) as an image of a readable size; class maps are never smoothed."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    longest = max(image.size)
    if longest > LARGEST:
        width, height = (max(1, round(side * LARGEST / longest)) for side in image.size)
        return image.resize((width, height), Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST)
    factor = max(1, READABLE // longest)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _page(
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
    page = Image.new("RGB", (max(width, *(e.width for e in legends)), 2 * row + GAP + sum(heights)), PAPER)
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
    return _stacked([page, *legends])


def _stacked(parts: Sequence[Image.Image]) -> Image.Image:
    page = Image.new("RGB", (max(p.width for p in parts), sum(p.height for p in parts)), PAPER)
    top = 0
    for part in parts:
        page.paste(part, (0, top))
        top += part.height
    return page
