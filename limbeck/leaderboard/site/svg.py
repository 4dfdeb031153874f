"""Static plots: SVG elements, scales and axes. Colours are classes of the style sheet, so both themes share a file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

WIDTH = 580
_LETTER = 7.3  # mean width of a letter at 12 px
_LONGEST = 34  # letters of a name that is drawn whole; its tooltip always has all


@dataclass(frozen=True)
class Scale:
    """Maps values to pixels; `low` is drawn at `start`, so a turned axis has low > high."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    least: float = 0.0  # what a logarithmic axis draws in place of anything smaller

    def __call__(self, value: float) -> float:
        """Pixel of a value."""
        low, high, at = (self._across(v) for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (at - low) / (high - low)

    def along(self, values: Sequence[float]) -> list[float]:
        """Pixels of many values, at less cost."""
        low, high = self._across(self.low), self._across(self.high)
        unit = (self.end - self.start) / (high - low)
        at = [self._across(v) for v in values] if self.log else values
        return [self.start + unit * (v - low) for v in at]

    def _across(self, value: float) -> float:
        return math.log10(max(value, self.least)) if self.log else value

    def ticks(self, count: int = 6) -> list[float]:
        """Round values within the axis, about `count` of them."""
        low, high = sorted((self.low, self.high))
        if self.log:
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            for steps in ((1, 2, 5), (1, 3), (1,)):
                found = [s * 10.0**p for p in powers for s in steps if low <= s * 10.0**p <= high]
                if len(found) <= count + 2:
                    break
            if len(found) >= 2:
                return found
        raw = (high - low) / count
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(s * power for s in (1, 2, 5, 10) if s * power >= raw)
        first = math.ceil(low / step - 1e-9)
        return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def padded(low: float, high: float, part: float) -> tuple[float, float]:
    """A range with room on both sides."""
    room = (high - low or abs(high) or 1.0) * part
    return low - room, high + room


def measured(
    means: Iterable[float], ends: Iterable[float], start: float, end: float, *, lower: bool = False, part: float = 0.05
) -> Scale:
    """The scale of a metric's axis.

    Where lower is better it is turned, so that up, or right, is better in every plot, and logarithmic where the means
    differ much: an interval that would reach below 0 then ends near the lowest mean.
    """
    middle, outer = list(means), list(ends)
    least = min(middle)
    if lower and least > 0 and max(middle) >= 10 * least:
        floor = max(least / 3, min(v for v in outer if v > 0))
        low, high = padded(math.log10(max(min(outer), floor)), math.log10(max(outer)), part)
        return Scale(10**high, 10**low, start, end, log=True, least=floor)
    low, high = padded(min(outer), max(outer), part)
    return Scale(high, low, start, end) if lower else Scale(low, high, start, end)


class Plot:
    """An SVG that elements are added to; every text and attribute is escaped when it is written."""

    def __init__(
        self, label: str, height: float, *, left: float = 48, right: float = 14, top: float = 10, bottom: float = 42
    ) -> None:
        self.left, self.right, self.top, self.bottom = left, WIDTH - right, top, height - bottom
        self.root = Element("svg", {"viewBox": f"0 0 {WIDTH} {height:g}", "role": "img", "aria-label": label})

    def add(self, tag: str, parent: Element | None = None, **attributes: Any) -> Element:
        """A child element; `class_` and `data_open` are written 'class' and 'data-open', numbers with one decimal."""
        said = {
            name.rstrip("_").replace("_", "-"): f"{value:.1f}" if isinstance(value, float) else str(value)
            for name, value in attributes.items()
            if value not in (None, "")
        }
        return SubElement(self.root if parent is None else parent, tag, said)

    def describe(self, said: str) -> None:
        """What the picture shows in words, for those who do not see it."""
        made = Element("desc")
        made.text = said
        self.root.insert(0, made)

    def line(self, x1: float, y1: float, x2: float, y2: float, class_: str, parent: Element | None = None) -> Element:
        """A straight line."""
        return self.add("line", parent, x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=class_)

    def text(
        self, x: float, y: float, said: str, class_: str = "", anchor: str = "start", parent: Element | None = None
    ) -> Element:
        """A line of text; a long one is cut."""
        made = self.add("text", parent, x=float(x), y=float(y), text_anchor=anchor, class_=class_)
        made.text = cut(said)
        return made

    def mark(self, class_: str, opens: str, said: str) -> Element:
        """A group whose tooltip is `said`, and that opens the popover `opens` when it is clicked."""
        made = self.add("g", class_=f"mark {class_}", data_open=opens)
        SubElement(made, "title").text = said
        return made

    def x_axis(self, scale: Scale, title: str, ticks: Sequence[tuple[float, str]] | None = None) -> None:
        """Grid lines, numbers below the plot, and what is counted."""
        for value, said in ticks or [(v, tick(v)) for v in scale.ticks()]:
            self.line(scale(value), self.top, scale(value), self.bottom, "grid")
            self.text(scale(value), self.bottom + 16, said, "tick", "middle")
        self.text((self.left + self.right) / 2, self.bottom + 34, title, "axis", "middle")

    def y_axis(self, scale: Scale, title: str) -> None:
        """Grid lines, numbers left of the plot, and what is counted above them."""
        for value in scale.ticks():
            self.line(self.left, scale(value), self.right, scale(value), "grid")
            self.text(self.left - 7, scale(value) + 4, tick(value), "tick", "end")
        self.text(2, 12, title, "axis")

    def markup(self) -> Any:
        """The SVG as text that a template does not escape again."""
        from markupsafe import Markup

        return Markup(tostring(self.root, encoding="unicode"))


def gutter(names: Iterable[str]) -> float:
    """Pixels that the longest of some names takes, with room to both sides."""
    return 16 + _LETTER * max(len(cut(name)) for name in names)


def cut(said: str) -> str:
    """A text that fits, without its middle: names of pairs differ at both ends."""
    return said if len(said) <= _LONGEST else f"{said[: _LONGEST // 2 - 1]}…{said[-_LONGEST // 2 :]}"


def tick(value: float) -> str:
    """An axis' number: 0.05, 20, 5k, 2M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):g}{unit}"
    return f"{value:g}".replace("-", "−")


def apart(wanted: Sequence[float], step: float, low: float, high: float) -> list[float]:
    """Heights for labels so that none covers another: in order, pushed apart, then shifted back into the frame."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    at: list[float] = []
    for i in order:
        at.append(max(wanted[i], at[-1] + step) if at else max(wanted[i], low))
    limit = high
    for k in reversed(range(len(at))):
        at[k] = min(at[k], limit)
        limit = at[k] - step
    under = max(0.0, low - at[0]) if at else 0.0
    placed = [0.0] * len(wanted)
    for k, i in enumerate(order):
        placed[i] = at[k] + under
    return placed
