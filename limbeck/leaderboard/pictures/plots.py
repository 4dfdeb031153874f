"""Small line plots of Pillow, for pictures beside the page: numbers along both axes, linear or logarithmic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from limbeck.leaderboard.pictures.panel_layout import GAP, INK, LETTERS, PAPER, SOFT, Colour

LINES: Sequence[Colour] = (
    (90, 90, 90),
    (0, 114, 178),
    (230, 120, 0),
    (0, 140, 100),
    (190, 90, 150),
    (150, 110, 20),
    (86, 180, 233),
    (120, 60, 190),
)
GRID: Colour = (222, 222, 222)
SIZE = (440, 300)  # pixels
LEFT, RIGHT, TOP, BOTTOM = 66, 26, 34, 44  # pixels of room
FINE = 2  # plots are drawn larger by it and shrunk, so that lines are smooth
LOG_FROM = 10.0  # largest ÷ smallest value from which a logarithmic axis reads better


@dataclass(frozen=True)
class Series:
    """A line: points in order, each with a short text beside it or none."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    texts: Sequence[str] = ()


@dataclass(frozen=True)
class Axis:
    """From values to shares of an axis, 0 to 1."""

    low: float
    high: float
    log: bool

    @classmethod
    def over(cls, values: Sequence[float], *, log: bool = False, zero: bool = False) -> Axis:
        """Room for all values; logarithmic where that is wanted and they differ much; from 0 on with `zero`."""
        low, high = min(values), max(values)
        found = log and low > 0 and high >= LOG_FROM * low
        if found:
            low, high = math.log10(low), math.log10(high)
        room = 0.06 * (high - low or abs(high) or 1.0)
        return cls(0.0 if zero and not found and low >= 0 else low - room, high + room, found)

    def at(self, value: float) -> float:
        """The share."""
        return ((math.log10(value) if self.log else value) - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values, two or more."""
        if self.log:
            tens = range(math.floor(self.low), math.ceil(self.high) + 1)
            for factors in ((1,), (1, 3), (1, 2, 5)):
                found = [f * 10.0**n for n in tens for f in factors]
                found = [v for v in found if 0 <= self.at(v) <= 1]
                if len(found) > 2:
                    break
            return found
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / 2))
        step = next(s for s in (step / 2, step, 2 * step, 5 * step) if (self.high - self.low) / s <= 6)
        first = math.ceil(self.low / step)
        return [n * step for n in range(first, math.floor(self.high / step) + 1)]


def plot(
    title: str,
    series: Sequence[Series],
    names: tuple[str, str],
    *,
    log: tuple[bool, bool] = (False, False),
    zero: tuple[bool, bool] = (False, False),
) -> Image.Image:
    """Lines with a marker at each point; the colour of the k-th is that of `key`.

    Args:
        names: of x and y. log, zero: of x and y, see `Axis.over`.
    """
    width, height = (side * FINE for side in SIZE)
    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    x = Axis.over([v for s in series for v in s.xs], log=log[0], zero=zero[0])
    y = Axis.over([v for s in series for v in s.ys], log=log[1], zero=zero[1])
    left, top, right, bottom = LEFT * FINE, TOP * FINE, width - RIGHT * FINE, height - BOTTOM * FINE

    def place(a: float, b: float) -> tuple[float, float]:
        return left + x.at(a) * (right - left), bottom - y.at(b) * (bottom - top)

    small = ImageFont.load_default((LETTERS - 3) * FINE)
    draw.text((0, 0), title, fill=INK, font=ImageFont.load_default(LETTERS * FINE))
    for value in x.ticks():
        at = left + x.at(value) * (right - left)
        draw.line((at, top, at, bottom), fill=GRID, width=FINE)
        draw.text((at, bottom + 4 * FINE), f"{value:.4g}", fill=SOFT, font=small, anchor="ma")
    for value in y.ticks():
        at = bottom - y.at(value) * (bottom - top)
        draw.line((left, at, right, at), fill=GRID, width=FINE)
        draw.text((left - 6 * FINE, at), f"{value:.4g}", fill=SOFT, font=small, anchor="rm")
    draw.text(((left + right) / 2, height - 2 * FINE), names[0], fill=SOFT, font=small, anchor="md")
    draw.text((left, top - 3 * FINE), names[1], fill=SOFT, font=small, anchor="ld")
    for index, one in enumerate(series):
        colour = LINES[index % len(LINES)]
        points = [place(a, b) for a, b in zip(one.xs, one.ys, strict=True)]
        draw.line(points, fill=colour, width=2 * FINE, joint="curve")
        for a, b in points:
            draw.ellipse((a - 4 * FINE, b - 4 * FINE, a + 4 * FINE, b + 4 * FINE), fill=colour)
        for (a, b), text in zip(points, one.texts):
            draw.text((a + 5 * FINE, b - 4 * FINE), text, fill=colour, font=small, anchor="ls")
    return page.resize(SIZE, Image.Resampling.LANCZOS)


def key(names: Sequence[str], width: int) -> Image.Image:
    """The colours of the lines, in their order, in as many rows as it takes."""
    font = ImageFont.load_default(LETTERS)
    places, left, row = [], GAP, 0
    for name in names:
        wide = 26 + round(font.getlength(name)) + 2 * GAP
        if left + wide > width and left > GAP:
            left, row = GAP, row + 1
        places.append((left, row))
        left += wide
    line = LETTERS + GAP
    page = Image.new("RGB", (width, (row + 1) * line + GAP), PAPER)
    draw = ImageDraw.Draw(page)
    for index, (name, (left, row)) in enumerate(zip(names, places)):
        middle = row * line + line // 2
        draw.line((left, middle, left + 20, middle), fill=LINES[index % len(LINES)], width=4)
        draw.text((left + 26, middle), name, fill=INK, font=font, anchor="lm")
    return page


def beside(parts: Sequence[Image.Image]) -> Image.Image:
    """Pictures from left to right."""
    width = GAP + sum(p.width + GAP for p in parts)
    page = Image.new("RGB", (width, max(p.height for p in parts) + GAP), PAPER)
    left = GAP
    for part in parts:
        page.paste(part, (left, 0))
        left += part.width + GAP
    return page
