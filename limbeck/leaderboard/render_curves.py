"""Curves as text for a terminal: means by number of labels or calls, gains, and two methods side by side."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from limbeck.leaderboard.curves import ComparedCurves, Curve, Curves, Gain, Point
from limbeck.leaderboard.figures import BLANK, grid, interval, probability
from limbeck.leaderboard.table import decimals, title

if TYPE_CHECKING:
    from rich.console import Console

_CELL = 16  # characters of the widest usual cell and the space beside it


def curves_title(found: Curves) -> str:
    """'top-1 ↑ by labels a class'."""
    arrow = "" if found.higher_is_better is None else " ↑" if found.higher_is_better else " ↓"
    return f"{curves_metric(found)}{arrow} by {found.axis}"


def curves_metric(found: Curves) -> str:
    """The metric in words."""
    return {"covered": "classes covered"}.get(found.metric, title(found.metric))


def curves_note(found: Curves) -> str:
    """How the figures of curves are made."""
    mean = f"Mean ± half of the {100 * found.confidence:.0f} % t interval over seeds."
    if not found.is_primary:
        return mean
    random = any(p.over_random for c in found.curves for p in c.points)
    over = "plain, or over the same training with images chosen at random" if random else "plain"
    lower = "by how much it is lower, " if found.higher_is_better is False else ""
    numbers = found.count.replace("number", "numbers")
    return (
        f"{mean} Gains over {over}: {lower}paired over shared seeds; p: two-sided paired t-test, Holm-adjusted over "
        f"the ranked methods at one {found.count}, not over the {numbers}."
    )


def teacher_text(found: Curves) -> str:
    """'teacher', or with its own network calls, 'teacher, 100 calls'."""
    return "teacher" if found.teacher_calls is None else f"teacher, {found.teacher_calls:g} calls"


def curves_places(found: Curves) -> int:
    """Decimals of its figures."""
    return decimals(p.estimate.mean for c in found.curves for p in c.points)


def gain_text(gain: Gain | None, places: int) -> list[str]:
    """'+1.20 ± 0.31' and 'p 0.012'; a dash where there is none."""
    if gain is None:
        return [BLANK]
    return [interval(gain.paired.difference, places, sign=True), f"p {probability(gain.p)}"]


def render_curves(found: Curves, console: Console) -> None:
    """Print all methods by number, then their gains; wide tables in parts that fit."""
    from rich.text import Text

    places = curves_places(found)
    console.print()
    console.print(Text(f"{found.name}: {curves_title(found)}  (version {found.version})", style="bold"))
    if found.teacher is not None:
        console.print(Text(f"{teacher_text(found)}: {found.teacher:.{places}f}", style="dim"))
    _blocks(found, "method", found.curves, lambda p: [interval(p.estimate, places)], console)
    if found.is_primary:
        gained = [c for c in found.curves if any(p.over_plain for p in c.points)]
        _blocks(found, "gain over plain", gained, lambda p: gain_text(p.over_plain, places), console)
        chosen = [c for c in found.curves if any(p.over_random for p in c.points)]
        _blocks(found, "gain over random", chosen, lambda p: gain_text(p.over_random, places), console)
    console.print(Text(curves_note(found), style="dim"))


def _blocks(
    found: Curves, heading: str, curves: Sequence[Curve], cell: Callable[[Point], list[str]], console: Console
) -> None:
    from rich.text import Text

    if not curves:
        return
    names = [c.method + "".join(f" ({f})" for f in c.flags) for c in curves]
    room = max(1, (console.width - max(map(len, [heading, *names])) - 2) // _CELL)
    xs = found.xs
    for start in range(0, len(xs), room):
        part = xs[start : start + room]
        lines = grid(heading, *map(str, part))
        for curve, name in zip(curves, names):
            cells = {p.x: "\n".join(cell(p)) for p in curve.points}
            style = "dim" if curve.flags else ""
            lines.add_row(Text(name), *(Text(cells.get(x, BLANK)) for x in part), style=style)
        console.print(lines)
        console.print()


def render_compared(found: Iterable[ComparedCurves], console: Console) -> None:
    """Print two methods side by side by number; the same curves once."""
    from rich.text import Text

    distinct = {one.name: one for one in found}
    for one in distinct.values():
        console.print()
        console.print(Text(f"{one.name}: {title(one.metric)} by {one.axis}", style="bold"))
        lines = grid(one.axis, "seeds", one.a, one.b, f"{one.a} − {one.b}", "p")
        places = decimals(e.mean for p in one.points for e in (p.a, p.b))
        for p in one.points:
            means = [interval(e, places) for e in (p.a, p.b)]
            difference = interval(p.paired.difference, places, sign=True)
            lines.add_row(str(p.x), str(len(p.paired.seeds)), *means, difference, probability(p.paired.p))
        console.print(lines)
    if distinct:
        counted = " or ".join(dict.fromkeys(re.sub(" an? .*", "", one.axis) for one in distinct.values()))
        note = f"p: as above, of each number of {counted} by itself, not adjusted for how many there are."
        console.print(Text(note, style="dim"))
