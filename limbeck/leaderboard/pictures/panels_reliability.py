"""The picture of reliability diagrams: a row a run, a column a head; bars of accuracy against confidence."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from limbeck.leaderboard.pictures.panel_layout import (
    INK,
    LETTERS,
    PAPER,
    SOFT,
    Cell,
    Colour,
    Legend,
    Line,
    lay_out,
)
from limbeck.leaderboard.pictures.reliability import HEADS, Bins, DualMember

ACCURACY, GAP_UP, GAP_DOWN = (70, 130, 190), (240, 150, 40), (150, 60, 120)  # told apart by lightness too
GRID: Colour = (222, 222, 222)
SIDE, LEFT, COUNTS = 280, 52, 56  # pixels: of the plot, the room on its left, and the height of the counts below
FINE = 2  # plots are drawn larger by it and shrunk, so that lines are smooth


def draw_reliability(members: Sequence[DualMember], heading: str, legend: Legend) -> Image.Image:
    """Every member's diagrams, and below each how its samples spread over the bins."""
    lines = [
        Line(
            f"{one.method}, seed {one.seed}: answer mixed by alpha {one.alpha:.2f}, beta {one.beta:.2f}",
            [Cell(diagram(one.heads[head]), _figures(one.heads[head])) for head in HEADS],
        )
        for one in members
    ]
    key: list[tuple[str, Colour]] = [
        ("accuracy of a bin", ACCURACY),
        ("up to its confidence: too sure", GAP_UP),
        ("down to its confidence: not sure enough", GAP_DOWN),
    ]
    return lay_out(heading, list(HEADS.values()), lines, [key], legend)


def _figures(found: Bins) -> str:
    return f"ECE {100 * found.ece:.1f} %, right {found.top1:.1f} %, sure {100 * found.mean_confidence:.1f} %"


def diagram(found: Bins) -> Image.Image:
    """Accuracy by confidence, the gap to each bin's mean confidence, the diagonal, and the share of samples a bin."""
    side, left, counts = SIDE * FINE, LEFT * FINE, COUNTS * FINE
    font = ImageFont.load_default((LETTERS - 2) * FINE)
    text = 20 * FINE
    page = Image.new("RGB", (left + side + 16 * FINE, 10 * FINE + side + text + counts + 2 * text), PAPER)
    draw = ImageDraw.Draw(page)
    top = 10 * FINE
    bottom, floor = top + side, top + side + text + counts

    def at(x: float, y: float) -> tuple[float, float]:
        return left + x * side, bottom - y * side

    for value in (0.0, 0.5, 1.0):
        x, y = at(value, value)
        draw.line((left, y, left + side, y), fill=GRID, width=FINE)
        draw.line((x, top, x, bottom), fill=GRID, width=FINE)
        draw.text((left - 6 * FINE, y), f"{value:g}", fill=SOFT, font=font, anchor="rm")
        anchor = {0.0: "la", 0.5: "ma", 1.0: "ra"}[value]
        draw.text((x, floor + 4 * FINE), f"{value:g}", fill=SOFT, font=font, anchor=anchor)
    most = max(found.counts)
    width = 1.0 / len(found.counts)
    for place, (count, accuracy, confidence) in enumerate(zip(found.counts, found.accuracy, found.confidence)):
        if accuracy is None or confidence is None:
            continue
        low, high = at(place * width, 0)[0] + FINE, at((place + 1) * width, 0)[0] - FINE
        draw.rectangle((low, at(0, accuracy)[1], high, bottom), fill=ACCURACY)
        upper, under = max(accuracy, confidence), min(accuracy, confidence)
        colour = GAP_UP if confidence > accuracy else GAP_DOWN
        inset = (high - low) / 4  # narrower, so that the bar of the accuracy stays whole
        draw.rectangle((low + inset, at(0, upper)[1], high - inset, at(0, under)[1]), fill=colour)
        tall = max(FINE, round(counts * count / most))
        draw.rectangle((low, floor - tall, high, floor), fill=SOFT)
    draw.line((*at(0, 0), *at(1, 1)), fill=INK, width=FINE)
    draw.line((left, floor, left + side, floor), fill=SOFT, width=FINE)
    share = 100 * most / sum(found.counts)
    draw.text((left - 6 * FINE, floor - counts), f"{share:.0f} %", fill=SOFT, font=font, anchor="rm")
    draw.text((left + side / 2, floor + text), "confidence; below, samples a bin", fill=SOFT, font=font, anchor="ma")
    return page.resize((page.width // FINE, page.height // FINE), Image.Resampling.LANCZOS)
