"""What the site's template shows of a run's training: its losses and its validations by epoch, drawn and in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from limbeck.engine.history import TOTAL, History, Point
from limbeck.engine.record import RunRecord
from limbeck.leaderboard.site.svg_plots import training
from limbeck.leaderboard.table import title

LINES = 12  # of one plot: more cannot be told apart
_LARGEST, _SMALLEST = 1e30, 1e-30  # what is beyond is no figure of a training


def history_view(record: RunRecord) -> list[dict[str, Any]]:
    """The plots of a record: losses, and the primary metric on validation; each where it has two points or more."""
    found = record.history
    if found is None:
        return []
    last = ", of the last of this run's trainings" if record.config.get("loop") else ""
    lines, hidden = _losses(found)
    more = f"; {hidden} more terms are in the record's JSON" if hidden else ""
    metric = title(record.primary_metric)
    tested = _line("validation", found.val_metrics.get(record.primary_metric, []), 0)
    shown = [
        _plot(found.epochs, lines, "loss", f"Mean loss of each epoch{last}", more),
        _plot(found.val_epochs, [tested], metric, f"{metric} on validation after each epoch that had one{last}", ""),
    ]
    return [one for one in shown if one is not None]


def _losses(found: History) -> tuple[list[dict[str, Any]], int]:
    """The sum and its terms as lines, and how many are left out; a single term that is the sum stands alone."""
    terms = {name: column for name, column in found.losses.items() if name != TOTAL}
    total = found.losses.get(TOTAL)
    if total is not None and list(terms.values()) != [total]:
        terms = {"sum": total, **terms}
    lines = [_line(name, column, i) for i, (name, column) in enumerate(terms.items())]
    return lines[:LINES], len(lines[LINES:])


def _line(name: str, column: Sequence[Point], hue: int) -> dict[str, Any]:
    """One line; epochs without a value that can be drawn are gaps in it."""
    values = [None if v is None or abs(v) > _LARGEST else 0.0 if abs(v) < _SMALLEST else v for v in column]
    return dict(name=name, hue=hue, dash=0, plain=False, values=values)


def _plot(
    epochs: Sequence[int], lines: Sequence[dict[str, Any]], axis: str, text: str, more: str
) -> dict[str, Any] | None:
    lines = [one for one in lines if any(v is not None for v in one["values"])]
    if len(epochs) < 2 or not lines:
        return None
    said = "; ".join(_said(epochs, one) for one in lines)
    return dict(text=f"{text}{more}", label=f"Plot: {text}", svg=training(epochs, lines, axis, text, said))


def _said(epochs: Sequence[int], line: dict[str, Any]) -> str:
    """A line in words: 'sum from 2.31 in epoch 1 to 0.12 in epoch 20, lowest 0.11, highest 2.31'."""
    points = [(epoch, v) for epoch, v in zip(epochs, line["values"]) if v is not None]
    values = [v for _, v in points]
    ends = " to ".join(f"{v:.4g} in epoch {epoch}" for epoch, v in (points[0], points[-1]))
    return f"{line['name']} from {ends}, lowest {min(values):.4g}, highest {max(values):.4g}"
