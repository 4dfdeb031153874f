"""Cells and columns of the tables that a template lays out by itself: text, sort key, link, half an interval."""

from __future__ import annotations

from typing import Any

from limbeck.leaderboard.figures import number
from limbeck.leaderboard.stats import Estimate


def column(title: str, *, first: str = "ascending", help_: str = "", text: bool = False) -> dict[str, str]:
    """A heading; `first` is the order that a first click gives.

    Args:
        text: of words, not of numbers.
    """
    return dict(title=title, first=first, help=help_, kind="text" if text else "number")


def cell(text: str, value: Any = None, *, link: str = "", half: str = "", exact: float | None = None) -> dict[str, Any]:
    """A figure or a word.

    Args:
        value: what it is sorted by; its text where not given.
        half, exact: half the interval as text and as a number.
    """
    return dict(text=text, value=text if value is None else value, link=link, half=half, exact=exact)


def blank() -> dict[str, Any]:
    """A figure that is not known."""
    return dict(text="–", value="", link="", half="", exact=None)


def estimated(found: Estimate, places: int, *, sign: bool = False) -> dict[str, Any]:
    """A mean with its interval."""
    half = "" if found.half is None else number(found.half, places)
    return cell(number(found.mean, places, sign=sign), found.mean, half=half, exact=found.half)


def optional(value: float | None, text: str) -> dict[str, Any]:
    """A figure that may be unknown."""
    return blank() if value is None else cell(text, value)
