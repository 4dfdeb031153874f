"""Reported tables on a terminal and as JSON: grouped by task, data, teacher and student, never ranked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, get_args

from limbeck.errors import UnknownName
from limbeck.leaderboard.figures import BLANK, grid
from limbeck.leaderboard.reported.names import aliases
from limbeck.leaderboard.reported.rows import ReportedRow, ReportedTask, reported_rows

if TYPE_CHECKING:
    from rich.console import Console

NOTE = (
    "Figures that others printed, none measured by Limbeck; many are at the best test epoch. Gain: over the baseline "
    "that the same table prints, positive is better. Rows stand in the order of their sources: nothing here is ranked."
)


def select(task: str | None = None, method: str | None = None, dataset: str | None = None) -> list[ReportedRow]:
    """The rows of a task, method (as printed or as ours) and data set, whatever the case of letters.

    Raises: UnknownName with near names.
    """
    rows, known = list(reported_rows()), aliases()
    if task is not None and task not in get_args(ReportedTask):
        raise UnknownName("task", task, get_args(ReportedTask), "of the reported tables")
    rows = [r for r in rows if task in (None, r.task)]
    if dataset is not None:
        found = [r for r in rows if r.dataset.lower() == dataset.lower()]
        rows = found or _unknown("data set", dataset, {r.dataset for r in rows}, task)
    if method is not None:
        names = {r.method: {r.method.lower(), (known.method(r) or "").lower()} for r in rows}
        found = [r for r in rows if method.lower() in names[r.method]]
        rows = found or _unknown("method", method, names, task)
    return rows


def _unknown(kind: str, name: str, known: Iterable[str], task: str | None) -> list[ReportedRow]:
    raise UnknownName(kind, name, known, f"in the reported tables{f' of {task}' if task else ''}")


def group(rows: Iterable[ReportedRow]) -> dict[tuple[str, ...], list[ReportedRow]]:
    """Rows by task, data set, split, metric, teacher and student."""
    found: dict[tuple[str, ...], list[ReportedRow]] = {}
    for row in rows:
        key = (row.task, row.dataset, row.split, row.metric, row.teacher, row.student)
        found.setdefault(key, []).append(row)
    return found


def signed(value: Decimal | None) -> str:
    """'+1.41' with as many decimals as were printed, or a dash."""
    return BLANK if value is None else f"{value:+}".replace("-", "−") if value else f"{value}".lstrip("-")


def render_reported(rows: Sequence[ReportedRow], console: Console) -> None:
    """Print rows, a table for each task, data set, teacher and student."""
    from rich.text import Text

    known = aliases()
    for (task, dataset, split, metric, teacher, student), found in group(rows).items():
        where = f"{task} on {dataset}{f' ({split})' if split else ''}: {teacher or 'teacher not printed'} → {student}"
        console.print(Text(f"\n{where}", style="bold"))
        arrow = "↑" if found[0].higher_is_better else "↓"
        columns = ("method", "teacher", "baseline", f"{metric} {arrow}", "gain", "schedule", "source")
        lines = grid(*columns, words=(0, 5, 6))
        for row in found:
            printed = (row.teacher_value, row.baseline_value, row.distilled_value)
            lines.add_row(
                Text(row.method),
                *(Text(BLANK if value is None else str(value)) for value in printed),
                Text(signed(row.gain)),
                Text(row.schedule),
                Text(known.source(row)),
            )
        console.print(lines)
    console.print()
    for identity, row in {known.source(row): row for row in rows}.items():
        arxiv = f", arXiv {row.source_arxiv}" if row.source_arxiv else ""
        console.print(Text(f"{identity}: {row.source_title}{arxiv}; {row.source_repo}", style="dim"))
    console.print(Text(f"\n{len(rows)} rows. {NOTE}", style="dim"))


def reported_json(rows: Iterable[ReportedRow]) -> list[dict[str, Any]]:
    """Rows as JSON values, with origin, source id, gain, and our name of the method."""
    known = aliases()
    return [
        {
            "origin": "reported",
            "source": known.source(row),
            **{k: float(v) if isinstance(v, Decimal) else v for k, v in row.model_dump().items()},
            "gain": None if row.gain is None else float(row.gain),
            "limbeck_method": known.method(row),
        }
        for row in rows
    ]
