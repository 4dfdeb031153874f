"""Tables as text: for a terminal through rich, for a README as Markdown between markers."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from limbeck.engine.config import PLAIN, TEACHER
from limbeck.engine.weights import atomic_path
from limbeck.errors import UserError
from limbeck.leaderboard.figures import BLANK, count, grid, interval, number, probability, share
from limbeck.leaderboard.render_ablation import ablation_note, render_ablations
from limbeck.leaderboard.rows import Row
from limbeck.leaderboard.store import load_results
from limbeck.leaderboard.table import Table, build_tables, column_decimals, direction, title

if TYPE_CHECKING:
    from rich.console import Console

_MARKED = re.compile(r"(?P<open><!-- table: (?P<name>[^\s>]+) -->)(?P<body>.*?)(?P<close><!-- /table -->)", re.DOTALL)


class MarkerError(UserError):
    """A Markdown file's table markers do not fit the results."""


def result_columns(table: Table) -> list[str]:
    """Headings of the columns that say how good each method is."""
    metric = f"{title(table.primary)} {direction(table, table.primary)}"
    return ["rank", "method", "n", metric, "gain over plain", "p", "gap closed"]


def result_cells(table: Table, row: Row) -> list[str]:
    """One row of `result_columns`."""
    places = column_decimals(table, table.primary)
    return [
        BLANK if row.rank is None else str(row.rank),
        row.method + row.marks + "".join(f" ({f})" for f in row.flags),
        str(row.n),
        interval(row.cells[table.primary].estimate, places),
        BLANK if row.gain is None else interval(row.gain.difference, places, sign=True),
        probability(row.p),
        share(row.gap_closed),
    ]


def metric_columns(table: Table) -> list[str]:
    """Headings of the metrics beside the primary one."""
    return [f"{title(m)} {direction(table, m)}".strip() for m in table.metrics[1:]]


def metric_cells(table: Table, row: Row) -> list[str]:
    """One row of `metric_columns`."""
    return [
        interval(row.cells[m].estimate, column_decimals(table, m)) if m in row.cells else BLANK
        for m in table.metrics[1:]
    ]


COST_COLUMNS = ["params", "FLOPs", "latency ms", "train s", "peak MB", "teacher fwd"]


def cost_cells(row: Row) -> list[str]:
    """One row of `COST_COLUMNS`."""
    cost = row.cost
    return [
        count(cost.parameters),
        count(cost.flops),
        number(cost.student_latency_ms, 2),
        number(cost.train_seconds, 1),
        number(cost.peak_memory_mb, 0),
        count(cost.teacher_forwards),
    ]


def summary(table: Table) -> str:
    """What the table compares, in one line."""
    seeds = sorted({s for r in table.rows if r.role != TEACHER for s in r.records})
    spelled = f"{len(seeds)} seed{'s' if len(seeds) != 1 else ''}"
    return (
        f"{table.task} on {table.data['name']} ({table.data['test_samples']:,} {table.data['split']} samples), "
        f"{spelled}, selection: {table.selection}"
    )


def footnote(table: Table) -> str:
    """How the figures of a table are made; of several teachers, which one measures the gap."""
    teacher = table.reference or TEACHER
    gain = "" if table.higher_is_better else f"by how much {title(table.primary)} is lower, "
    return (
        f"Mean ± half of the {100 * table.confidence:.0f} % t interval over seeds. Gain: {gain}paired over shared "
        "seeds; p: two-sided paired t-test, Holm-adjusted. Rank: 1 + methods whose whole interval is better. "
        f"Gap closed: (method − plain) ÷ ({teacher} − plain)."
    )


def marks(table: Table) -> list[str]:
    """What the marks after names mean, each with the rows that have it; nothing where no row has one."""
    said: dict[str, list[str]] = {}
    for row in table.rows:
        if row.assumption is not None:
            said.setdefault(row.assumption, []).append(row.method)
    notes = [f"† {', '.join(names)}, ours, not the paper's: {sentence}" for sentence, names in said.items()]
    plain = next((r for r in table.rows if r.role == PLAIN), None)
    others = [f"{r.method} {r.network}, {count(r.cost.parameters)}" for r in table.rows if r.other_network]
    if others and plain is not None:
        size = f"{plain.network}, {count(plain.cost.parameters)} parameters"
        notes.append(f"‡ Deploys another network than the plain student ({size}): {'; '.join(others)}.")
    copies = [r.method for r in table.rows if r.from_teacher]
    if copies:
        notes.append(f"§ Starts from the teacher's weights, the plain student from its own: {', '.join(copies)}.")
    return notes


def render(table: Table, console: Console, *, ablations: bool = True) -> None:
    """Print a table, legible from 100 columns on, and its ablations, from 80 on."""
    from rich.text import Text

    console.print()
    console.print(Text(f"{table.name}  (version {table.version})", style="bold"))
    console.print(Text(summary(table), style="dim"))
    models = f"{table.teacher or 'no teacher'} → {table.student}"
    console.print(Text(models, style="dim"))
    blocks = [(result_columns(table), lambda row: result_cells(table, row))]
    if len(table.metrics) > 1:
        names = ["method", *metric_columns(table)]
        blocks.append((names, lambda row: [row.method + row.marks, *metric_cells(table, row)]))
    blocks.append((["method", *COST_COLUMNS], lambda row: [row.method + row.marks, *cost_cells(row)]))
    for columns, cells in blocks:
        lines = grid(*columns, words=(columns.index("method"),))
        for row in table.rows:
            # Text, else square brackets of a name would be read as markup
            style = "dim" if row.flags else "bold" if row.rank == 1 else ""
            lines.add_row(*(Text(c) for c in cells(row)), style=style, end_section=row.role == PLAIN)
        console.print(lines)
        console.print()
    for warning in table.warnings:
        console.print(Text(f"! {warning}", style="yellow"))
    for note in (footnote(table), *marks(table)):
        console.print(Text(note, style="dim"))
    if ablations:
        heading = f"{title(table.primary)} {direction(table, table.primary)}"
        places = column_decimals(table, table.primary)
        note = ablation_note(table.ablations, higher_is_better=table.higher_is_better)
        render_ablations(table.ablations, console, table.primary, heading, places, note)


def show_tables(folder: str | Path, console: Console, *, benchmarks: Collection[str] | None = None) -> None:
    """Print the tables of a folder of records."""
    for table in build_tables(load_results(folder, benchmarks=benchmarks)):
        render(table, console)


def to_markdown(table: Table) -> str:
    """A table as GitHub-flavoured Markdown: results, other metrics and what differs in cost, then how it was made.

    Ablations are left out.
    """
    cost = [i for i, name in enumerate(COST_COLUMNS) if name in ("params", "latency ms", "train s")]
    columns = [*result_columns(table), *metric_columns(table), *(COST_COLUMNS[i] for i in cost)]
    lines = [_line(columns), _line("---" if name == "method" else "---:" for name in columns)]
    for row in table.rows:
        spent = cost_cells(row)
        cells = [*result_cells(table, row), *metric_cells(table, row), *(spent[i] for i in cost)]
        if row.rank == 1:
            cells[1] = f"**{cells[1]}**"
        lines.append(_line(cells))
    models = f"{table.teacher or 'no teacher'} → {table.student}"
    caption = f"**{table.name}** (version {table.version}): {summary(table)}; {models}."
    notes = [footnote(table), *marks(table), *(f"Note: {w}." for w in table.warnings)]
    return "\n".join([caption, "", *lines, "", " ".join(notes)])


def update_markdown(path: str | Path, tables: Iterable[Table], *, check: bool = False) -> bool:
    """Regenerate the tables between `<!-- table: NAME -->` and `<!-- /table -->`; returns whether the file was stale.

    NAME is 'benchmark/pair', or a benchmark for all of its pairs; its highest version is shown.

    Args:
        check: only say, write nothing.
    Raises: MarkerError for an absent file, an unknown name, no markers or an open one.
    """
    file = Path(path)
    if not file.is_file():
        raise MarkerError(f"{file}: no such file; name a Markdown file with <!-- table: NAME --> markers")
    old = file.read_text(encoding="utf-8")
    found = list(tables)
    names = [m["name"] for m in _MARKED.finditer(old)]
    if not names:
        raise MarkerError(
            f"{file}: has no <!-- table: NAME --> … <!-- /table --> markers; add them where a table belongs"
        )
    if len(re.findall(r"<!-- table: ", old)) != len(names) or old.count("<!-- /table -->") != len(names):
        raise MarkerError(
            f"{file}: a <!-- table: … --> or its <!-- /table --> is missing; there are {len(names)} whole pairs"
        )

    def fill(match: re.Match[str]) -> str:
        body = "\n\n".join(to_markdown(t) for t in _named(found, match["name"], file))
        return f"{match['open']}\n\n{body}\n\n{match['close']}"

    new = _MARKED.sub(fill, old)
    if new != old and not check:
        with atomic_path(file) as temporary:
            temporary.write_text(new, encoding="utf-8")
    return new != old


def _named(tables: Sequence[Table], name: str, file: Path) -> list[Table]:
    found = [t for t in tables if name in (t.benchmark, t.name)]
    if not found:
        known = ", ".join(sorted({t.name for t in tables}))
        raise MarkerError(f"{file}: no results for the table {name!r}; there are: {known}")
    version = max(t.version for t in found)
    return [t for t in found if t.version == version]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"
