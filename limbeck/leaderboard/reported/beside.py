"""Reported beside measured: the gain that others printed for a method and the one of our records, never one ranking."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from limbeck.engine.config import PLAIN
from limbeck.leaderboard.checks import ResultsError
from limbeck.leaderboard.figures import interval, number
from limbeck.leaderboard.reported.names import OUR_TASK, aliases, counterpart
from limbeck.leaderboard.reported.rows import reported_gains, reported_rows
from limbeck.leaderboard.rows import Row
from limbeck.leaderboard.stats import Estimate
from limbeck.leaderboard.table import Table, column_decimals, title

if TYPE_CHECKING:
    from rich.console import Console

NOTE = (
    "Reported gains are others', on other data, networks, budgets and selection rules (often the best test epoch); "
    "measured ones are of the records here. Benchmarks differ in data and budget, so the difference says how far two "
    "settings are apart, not which method is better, and the two columns are never ranked together. Methods stand in "
    "alphabetical order. ● is the same data, teacher and student."
)


@dataclass(frozen=True)
class ReportedFigure:
    """One published gain.

    same_pair: whether data, teacher and student are those of the measured runs. place: file and line of the table.
    """

    dataset: str
    teacher: str
    student: str
    gain: float
    source: str
    place: str
    same_pair: bool


@dataclass(frozen=True)
class Beside:
    """One method of one measured pair and the gains that others printed for it in the same metric.

    measured: paired gain over the plain student; positive is better.
    """

    benchmark: str
    pair: str
    method: str
    metric: str
    measured: Estimate
    seeds: tuple[int, ...]
    reported: tuple[ReportedFigure, ...]

    def differences(self) -> list[float]:
        """Measured minus reported, one a figure."""
        return [self.measured.mean - figure.gain for figure in self.reported]


def beside(tables: Iterable[Table], *, dataset: str | None = None) -> list[Beside]:
    """The methods of some tables that have both a measured gain and a reported one, by pair and name.

    Args:
        dataset: take reported gains on this data set alone, in any case of letters.
    Raises: ResultsError when there is none.
    """
    tables = list(tables)
    found = [
        Beside(
            table.benchmark, table.pair, row.method, table.primary, row.gain.difference, tuple(row.gain.seeds), figures
        )
        for table in tables
        for row in sorted(table.rows, key=lambda r: r.method.lower())
        if row.gain is not None and row.role != PLAIN and (figures := _figures(table, row, dataset))
    ]
    if not found:
        names = ", ".join(sorted({t.name for t in tables}))
        where = f" on {dataset}" if dataset else ""
        raise ResultsError(
            f"no method of {names} has a reported gain in the same metric{where}; see: limbeck leaderboard reported"
        )
    return found


def _figures(table: Table, row: Row, dataset: str | None) -> tuple[ReportedFigure, ...]:
    return tuple(
        figure
        for figure in (*_of_rows(table, row.method), *_of_gains(table, row.method))
        if dataset is None or figure.dataset.lower() == dataset.lower()
    )


def _of_rows(table: Table, method: str) -> Iterable[ReportedFigure]:
    known = aliases()
    for row in reported_rows():
        if row.gain is not None and _fits(row, table, method):
            ours = counterpart(row)
            same = table.benchmark in ours.benchmarks and table.pair == ours.pair
            yield ReportedFigure(
                row.dataset, row.teacher, row.student, float(row.gain), known.source(row), row.place, same
            )


def _of_gains(table: Table, method: str) -> Iterable[ReportedFigure]:
    for row in reported_gains():
        if row.gain_over.startswith("undistilled student") and _fits(row, table, method):
            source = f"{row.source_title} ({row.source_table})"
            yield ReportedFigure(
                row.dataset or "not named", row.teacher, row.student, float(row.gain), source, row.place, False
            )


def _fits(row: Any, table: Table, method: str) -> bool:
    known = aliases()
    ours = known.method(row)
    return (
        ours is not None
        and ours.lower() == method.lower()
        and OUR_TASK.get(row.task, row.task) == table.task
        and known.metrics.get(row.metric) == table.primary
    )


def render_beside(found: Sequence[Beside], tables: Iterable[Table], console: Console, *, rows: bool = False) -> None:
    """Print both columns: one line a method and data set with the range of reported gains; `rows`: one a figure."""
    from rich.text import Text

    places = {(t.benchmark, t.pair): column_decimals(t, t.primary) for t in tables}
    for (benchmark, pair), ones in groupby(found, key=lambda b: (b.benchmark, b.pair)):
        methods = list(ones)
        console.print(Text(f"\n{benchmark}/{pair}: gain in {title(methods[0].metric)} over the plain student"))
        lines = _grid(rows)
        for one in methods:
            for figures in _lines(one, rows):
                _add(lines, one, figures, places[benchmark, pair], rows)
            lines.add_section()
        console.print(lines)
    console.print(Text(NOTE, style="dim"))


def _grid(rows: bool) -> Any:
    """Headings; reported and measured in different colours, apart from each other."""
    from rich import box
    from rich.table import Table as Grid

    lines = Grid(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1))
    lines.add_column("method")
    lines.add_column("REPORTED gain", justify="right", style="cyan", header_style="bold cyan", no_wrap=True)
    lines.add_column("on", style="cyan", header_style="bold cyan")
    lines.add_column("source" if rows else "figures", style="cyan", header_style="bold cyan")
    lines.add_column("│ MEASURED gain", justify="right", style="bold", header_style="bold", no_wrap=True)
    lines.add_column("seeds", justify="right")
    lines.add_column("measured − reported", justify="right")
    return lines


def _lines(one: Beside, rows: bool) -> list[list[ReportedFigure]]:
    """The figures that share a line."""
    if rows:
        return [[figure] for figure in one.reported]
    by_data: dict[tuple[str, bool], list[ReportedFigure]] = {}
    for figure in one.reported:
        by_data.setdefault((figure.dataset, figure.same_pair), []).append(figure)
    return list(by_data.values())


def _add(lines: Any, one: Beside, figures: list[ReportedFigure], places: int, rows: bool) -> None:
    from rich.text import Text

    first, gains = figures[0], [f.gain for f in figures]
    mark = "● " if first.same_pair else ""
    on = f"{mark}{first.dataset}" + (f": {first.teacher or '?'} → {first.student}" if rows else "")
    lines.add_row(
        Text(one.method),
        Text(_range(gains, 2)),
        Text(on),
        Text(first.source if rows else str(len(figures))),
        Text(f"│ {interval(one.measured, places, sign=True)}"),
        Text(str(len(one.seeds))),
        Text(_range([one.measured.mean - g for g in gains], 2)),
    )


def _range(values: Sequence[float], places: int) -> str:
    """'+1.66', or '−5.07 … +2.30' of several: a range, for figures of other people's settings are not averaged."""
    ends = [number(v, places, sign=True) for v in (min(values), max(values))]
    return ends[0] if ends[0] == ends[1] else " … ".join(ends)


def beside_json(found: Iterable[Beside]) -> list[dict[str, Any]]:
    """The same as JSON values, one difference a reported figure."""
    return [
        {**asdict(one), "reported": [asdict(f) | {"difference": d} for f, d in zip(one.reported, one.differences())]}
        for one in found
    ]
