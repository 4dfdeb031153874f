"""Figures as text: decimals, intervals, probabilities, counts and shares, the same in every table and page."""

from __future__ import annotations

from typing import Any

from limbeck.leaderboard.stats import Estimate

BLANK = "–"
_WIDEST = 16


def number(value: float | None, places: int, *, sign: bool = False) -> str:
    """A fixed number of decimals, a dash for None, and never a negative zero."""
    if value is None:
        return BLANK
    text = f"{value:+.{places}f}" if sign else f"{value:.{places}f}"
    return text.replace("-", "−") if float(text) else text.lstrip("+-")


def interval(estimate: Estimate, places: int, *, sign: bool = False) -> str:
    """'71.20 ± 0.31'; the mean alone where there is no interval."""
    mean = number(estimate.mean, places, sign=sign)
    return mean if estimate.half is None else f"{mean} ± {estimate.half:.{places}f}"


def probability(p: float | None) -> str:
    """'0.012', '<0.001', or a dash."""
    return BLANK if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def count(value: float | None) -> str:
    """A large count with its unit: 78.0k, 12.4M, 1.8G."""
    if value is None:
        return BLANK
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}" if abs(value) < 100 * limit else f"{value / limit:.0f}{unit}"
    return f"{value:.0f}"


def share(value: float | None) -> str:
    """A share in percent, or a dash."""
    return BLANK if value is None else f"{number(100 * value, 0)} %"


def grid(*columns: str, words: tuple[int, ...] = (0,)) -> Any:
    """An empty rich table with these headings; the columns of `words` are text, the others figures."""
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    table = Grid(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1))
    for i, name in enumerate(columns):
        if i in words:
            table.add_column(Text(name))
        elif len(name) > _WIDEST:  # a variant's name is broken, its figures are not
            table.add_column(Text(name.replace("@", "\n@")), justify="right", min_width=_WIDEST, overflow="fold")
        else:
            table.add_column(Text(name), justify="right", no_wrap=True)
    return table
