"""Ablations as text for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from limbeck.leaderboard.ablation import Ablation, Point
from limbeck.leaderboard.figures import BLANK, count, grid, interval
from limbeck.leaderboard.stats import CONFIDENCE, Estimate

if TYPE_CHECKING:
    from rich.console import Console

BASE_MARK = "*"


def ablation_note(ablations: Sequence[Ablation], *, higher_is_better: bool = True) -> str:
    """How the figures of ablations are made."""
    unread = any(p.label == "base" for a in ablations for p in a.points)
    lower = "" if higher_is_better else "by how much it is lower, "
    return (
        "Ablations: one option of a method at other values, not ranked. "
        f"{BASE_MARK}: the method's own value{', base where its config leaves it to the code' if unread else ''}. "
        f"Gains: {lower}paired over shared seeds, ± half of the {100 * CONFIDENCE:.0f} % t interval, which is not "
        "widened for the number of values; no p is shown, for it would not be corrected."
    )


def ablation_columns(ablation: Ablation, metric: str) -> list[str]:
    """Headings: the value, how good it is, and what differs in size where anything does."""
    over = [f"over {ablation.method}"] if any(p.over_base for p in ablation.points) else []
    return ["value", "n", metric, "over plain", *over, *(["params"] if ablation.networks_differ else [])]


def ablation_cells(ablation: Ablation, point: Point, metric: str, places: int) -> list[str]:
    """One row of `ablation_columns`."""

    def gain(estimate: Estimate | None) -> str:
        return BLANK if estimate is None else interval(estimate, places, sign=True)

    row = point.row
    over = [gain(point.over_base)] if any(p.over_base for p in ablation.points) else []
    return [
        point.label + BASE_MARK * point.is_base + "".join(f" ({f})" for f in row.flags),
        str(row.n),
        interval(row.cells[metric].estimate, places),
        gain(point.over_plain),
        *over,
        *([count(row.cost.parameters)] if ablation.networks_differ else []),
    ]


def render_ablations(
    ablations: Sequence[Ablation], console: Console, metric: str, heading: str, places: int, note: str
) -> None:
    """Print ablations, one small table each, and how they are made; nothing where there are none.

    Args:
        metric: the primary one; heading and places: its column's.
        note: of `ablation_note`.
    """
    from rich.text import Text

    for ablation in ablations:
        console.print()
        console.print(Text(f"{ablation.method}: {ablation.option}{'†' if ablation.assumption else ''}", style="bold"))
        lines = grid(*ablation_columns(ablation, heading))
        for point in ablation.points:
            style = "dim" if point.row.flags else "bold" if point.is_base else ""
            lines.add_row(*(Text(c) for c in ablation_cells(ablation, point, metric, places)), style=style)
        console.print(lines)
        if ablation.warning:
            console.print(Text(f"! {ablation.warning}", style="yellow"))
        if ablation.assumption:
            console.print(Text(f"† Ours, not the paper's: {ablation.name}: {ablation.assumption}", style="dim"))
    if ablations:
        console.print()
        console.print(Text(note, style="dim"))
