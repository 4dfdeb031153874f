"""The picture of chosen voxels: all pillars of a frame from above, the centres coloured by weight, and the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from limbeck.leaderboard.pictures.panel_layout import INK, LETTERS, PAPER, SOFT, Cell, Legend, Line, lay_out
from limbeck.leaderboard.pictures.panels_masks import FINE, heat
from limbeck.pointcloud.bev import BirdsEye

if TYPE_CHECKING:
    from limbeck.leaderboard.pictures.voxel_run import Choice, Seen
    from limbeck.leaderboard.pictures.voxels import ChosenVoxels

SIDE = 420  # pixels of a frame's longer side
PLOT, MARGIN = (360, 300), (48, 46)  # pixels: size of a histogram; room on its left and right, and below
FAINT = (226, 226, 226)  # pillars that are no centres
COUNTS = (232, 40)  # grey of a pillar with one point, and of the fullest


def draw_voxels(seen: Seen, figures: Sequence[ChosenVoxels], heading: str, legend: Legend) -> Image.Image:
    """A row a frame: pillars by their numbers of points, centres by their weights φ, and the histogram of φ.

    Args:
        figures: of the frames, in their order.
        legend: draws named colours, see `limbeck.leaderboard.pictures.panel_layout`.
    """
    lines = []
    most = max((int(frame.counts.max()) for frame in seen.frames if len(frame.counts)), default=1)
    for frame, said in zip(seen.frames, figures, strict=True):
        inside, at = (f"{100 * share:.1f} % inside boxes" for share in (said.pillars_inside, said.centres_inside))
        cells = [
            Cell(_pillars(seen, frame, most), f"{said.pillars} pillars, {inside}"),
            Cell(
                _centres(seen, frame), f"{said.centres} centres, {at}, {100 * said.weight_inside:.1f} % of the weight"
            ),
            Cell(
                histogram(said.histogram, seen.largest_weight), f"count as {said.effective_centres:.0f} equal centres"
            ),
        ]
        lines.append(Line(f"val sample {said.sample}: {said.objects} objects", cells))
    titles = [
        f"pillars, darker with more points (1 to {most})",
        "centres, coloured by weight",
        "histogram of the weights",
    ]
    present = sorted({int(label) for frame in seen.frames for label in frame.labels})
    keys = [[*((f"true box: {seen.classes[k]}", seen.palette[k]) for k in present), ("pillar, no centre", FAINT)]]
    return lay_out(heading, titles, lines, keys, legend)


def _pillars(seen: Seen, frame: Choice, most: int) -> Image.Image:
    view = BirdsEye(seen.extent, longest=SIDE)
    view.rings()
    shade = np.interp(frame.counts, (1, max(most, 2)), COUNTS).round().astype(np.uint8)
    view.cells(frame.places, seen.pillar, np.repeat(shade[:, None], 3, 1))
    return _boxed(view, seen, frame)


def _centres(seen: Seen, frame: Choice) -> Image.Image:
    view = BirdsEye(seen.extent, longest=SIDE)
    view.rings()
    view.cells(frame.places, seen.pillar, np.full((len(frame.places), 3), FAINT, np.uint8))
    order = np.argsort(frame.weights, kind="stable")
    shown = frame.centres[order]
    view.cells(frame.places[shown], seen.pillar, heat(frame.weights[order] / seen.largest_weight))
    return _boxed(view, seen, frame)


def _boxed(view: BirdsEye, seen: Seen, frame: Choice) -> Image.Image:
    view.boxes(frame.boxes, [seen.palette[int(label)] for label in frame.labels])
    page = view.image()
    ImageDraw.Draw(page).rectangle((0, 0, page.width - 1, page.height - 1), outline=FAINT)
    return page


def histogram(counts: Sequence[int], largest: float) -> Image.Image:
    """Bars from 0 to `largest` in the colours of these weights."""
    font = ImageFont.load_default(LETTERS * FINE)
    width, height = (side * FINE for side in PLOT)
    side, below = (room * FINE for room in MARGIN)
    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    base, top = height - below, LETTERS * FINE
    most = max(*counts, 1)
    step = (width - side - side // 2) / len(counts)
    colours = heat((np.arange(len(counts)) + 0.5) / len(counts))
    for place, count in enumerate(counts):
        left = side + place * step
        high = base - count / most * (base - top)
        draw.rectangle((left, high, left + step - FINE, base), fill=tuple(colours[place].tolist()))
    draw.line((side, base, side + len(counts) * step, base), fill=SOFT, width=FINE)
    for share in (0.0, 0.5, 1.0):
        x = side + share * len(counts) * step
        draw.text((x, base + 4 * FINE), f"{share * largest:.3g}", fill=INK, font=font, anchor="ma")
    draw.text((width / 2, height - 2 * FINE), "weight (mean 1)", fill=SOFT, font=font, anchor="md")
    draw.text((side - 4 * FINE, top), str(most), fill=SOFT, font=font, anchor="rm")
    draw.text((side - 4 * FINE, base), "0", fill=SOFT, font=font, anchor="rm")
    return page.resize(PLOT, Image.Resampling.LANCZOS)
