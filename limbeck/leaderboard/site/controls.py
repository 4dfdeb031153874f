"""What is shown of measured controls: a picture's address and caption, and a table, for the page and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from limbeck.leaderboard.figures import BLANK, interval, number
from limbeck.leaderboard.pictures.controls import FOLDER, Bounds, Controls, Curve, first_seeds
from limbeck.leaderboard.pictures.generators import Taught
from limbeck.leaderboard.pictures.plans import picture_view
from limbeck.leaderboard.site.measured import measured_markdown
from limbeck.leaderboard.stats import estimate
from limbeck.leaderboard.table import decimals

WORDS = ("slider trained on", "used on")
COLUMNS = [*WORDS, "seeds", "slope", "95 % over images", "transfer ratio", "95 % over images"]
RATIO_PLACES = 2


def controls_view(found: Controls) -> dict[str, Any]:
    """Everything that the template shows of one: the picture's view, with `columns` and `rows` of the table."""
    alt = f"Images of {found.data} by scale of a slider of {_said(found)}, and plots of it; the table has the slopes."
    return picture_view(found, FOLDER, alt, controls_note(found)) | dict(columns=COLUMNS, rows=controls_rows(found))


def controls_note(found: Controls) -> str:
    """What is seen, and how the figures are made."""
    return (
        f"A slider, an adapter of rank {found.rank} trained for {found.steps} updates on one model to give more "
        f"{_said(found)} at a higher scale, is used as it is on another (control distillation, arXiv 2503.10637): a "
        "transfer ratio of 1 means that it has the same effect there as on its own model, 0 none. Slope: change of the "
        f"mean {_said(found)} for a scale higher by 1, over {found.images} images from the noise of the test split's "
        f"requests of {found.data}; sliders learn from the training split. Mean ± half of the 95 % t interval over "
        "seeds; images and plots, and bootstrap intervals over images, are of each method's lowest seed."
    )


def controls_rows(found: Controls) -> list[list[str]]:
    """The teacher's slider on the teacher and every method, then each method's on itself and on the teacher."""
    places = decimals(c.slope.value for c in found.curves)
    first = {m.method: m for m in first_seeds(found.members)}
    methods = {name: [m for m in found.members if m.method == name] for name in first}

    def row(trained: str, used: str, curves: Sequence[Curve]) -> list[str]:
        one = curves[0]
        slope = interval(estimate([c.slope.value for c in curves]), places)
        ratios = [c.ratio.value for c in curves if c.ratio is not None]
        ratio = interval(estimate(ratios), RATIO_PLACES) if len(ratios) == len(curves) else BLANK
        return [
            trained,
            used,
            str(len(curves)),
            slope,
            _range(one.slope, places),
            ratio,
            BLANK if one.ratio is None else _range(one.ratio, RATIO_PLACES),
        ]

    rows = [row("teacher", "teacher", [found.curve(t.record, t.record)]) for t in found.teachers]
    for name, members in methods.items():
        rows.append(row("teacher", name, [found.curve(m.teacher, m.record) for m in _by_seed(members)]))
    for name, one in first.items():
        rows.append(row(name, name, [found.curve(one.record, one.record)]))
        rows.append(row(name, "teacher", [found.curve(one.record, one.teacher)]))
    return rows


def controls_markdown(found: Controls) -> str:
    """The table and its note as Markdown."""
    return measured_markdown(found, COLUMNS, controls_rows(found), controls_note(found), WORDS)


def _by_seed(members: Iterable[Taught]) -> list[Taught]:
    return sorted(members, key=lambda m: m.seed)


def _range(found: Bounds, places: int) -> str:
    return f"{number(found.low, places)} to {number(found.high, places)}"


def _said(found: Controls) -> str:
    return found.attribute.replace("_", " ")
