"""What the site's template shows of a task: advice, short tables of its benchmarks, and what a student costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from limbeck.engine.config import PLAIN, TEACHER
from limbeck.errors import ConfigError, ExtraMissing
from limbeck.leaderboard.across import across, across_svg
from limbeck.leaderboard.advice import MethodAdvice, PairAdvice, advise_methods, advise_pair, never_helped
from limbeck.leaderboard.figures import count, number, probability, share
from limbeck.leaderboard.pareto import pareto
from limbeck.leaderboard.render_tasks import across_notes, across_sentences
from limbeck.leaderboard.rows import Row
from limbeck.leaderboard.site.addresses import Addresses, slug, task_title
from limbeck.leaderboard.site.cells import blank, cell, column, estimated, optional
from limbeck.leaderboard.site.data import left_out, newest
from limbeck.leaderboard.site.svg_plots import against
from limbeck.leaderboard.table import Table, column_decimals, direction, title

SHORT = 5  # methods of a short table
PAIRS = 100  # on a page: with a line and a short table each they take about 6 kB


def across_view(tables: Sequence[Table]) -> dict[str, Any] | None:
    """The comparison of a task's methods over its pairs; None where `across` has nothing to compare.

    Without scikit-posthocs there is no diagram, and the section says so.
    """
    try:
        found = across(tables)
        drawn = Markup(across_svg(found))  # markup of our own: names in it are escaped by matplotlib
    except ConfigError:  # fewer than two pairs or three methods, or metrics of several kinds
        return None
    except ExtraMissing as missing:
        return dict(svg=None, sentences=[str(missing)], notes=[])
    return dict(svg=drawn, sentences=across_sentences(found), notes=across_notes(found))


def task_view(
    task: str,
    tables: Sequence[Table],
    slugs: Sequence[str],
    addresses: Addresses,
    latest: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Everything that the template shows of one task, and of `every_pair` also the lines that it has no room for.

    Advice by method and the comparison across pairs are of all pairs; of `PAIRS` pairs with the newest runs there is
    a line and a short table.

    Args:
        slugs: of the tables, the ids of their sections.
        latest: when the newest run of a table finished, by slug.
    """
    highest = {b: max(t.version for t in tables if t.benchmark == b) for b in {t.benchmark for t in tables}}
    current = [(t, s) for t, s in zip(tables, slugs, strict=True) if t.version == highest[t.benchmark]]
    only = [t for t, _ in current]
    every = [_pair_row(advise_pair(t), s, addresses) for t, s in current]
    finished = latest or {}
    shown = newest(list(zip(current, every, strict=True)), PAIRS, lambda one: finished.get(one[0][1], ""))
    short = [one for one, _ in shown]
    methods = advise_methods(only)
    return dict(
        title=task_title(task),
        task=task,
        pairs=len(current),
        pair_columns=_PAIR_COLUMNS,
        pair_rows=[row for _, row in shown],
        every_pair=every,
        left_out=left_out(len(shown), len(current), f"tasks/{slug(task)}.csv"),
        method_columns=_METHOD_COLUMNS,
        method_rows=[_method_row(m, addresses) for m in methods],
        never=[_counted(m, addresses) for m in never_helped(methods)],
        harmed=[_counted(m, addresses) for m in methods if m.hurt],
        across=across_view(only),
        benchmark_count=len({t.benchmark for t in only}),
        benchmarks=[_benchmark(name, short, addresses) for name in dict.fromkeys(t.benchmark for t, _ in short)],
    )


_PAIR_COLUMNS = [
    column("pair", text=True),
    column("best method", text=True, help_="the largest mean gain of those told apart from the plain student"),
    column("gain", first="descending"),
    column("gap closed", first="descending"),
    column("alike", first="descending", help_="other methods that helped and that no test tells apart from the best"),
    column("cheapest of these", text=True, help_="least mean training time"),
    column("its gain", first="descending"),
    column("train s", help_="its mean training time"),
    column("of best", help_="the best one's mean training time"),
]
_METHOD_COLUMNS = [
    column("method", text=True),
    column("pairs", first="descending", help_="where it was tested"),
    column("helped", first="descending", help_="pairs in which it is told apart from the plain student as better"),
    column("no difference", first="descending", help_="pairs in which no test tells it apart"),
    column("hurt", first="descending", help_="pairs in which it is told apart as worse"),
    column("gap closed", first="descending", help_="median over the pairs"),
]


def _pair_row(found: PairAdvice, slug: str, addresses: Addresses) -> list[dict[str, Any]]:
    table, best, cheapest = found.table, found.best, found.cheapest
    pair = cell(table.name, link=addresses.benchmark(table.benchmark, slug))
    if best is None or cheapest is None:
        none = f"none of {found.tested} told apart from plain" if found.tested else "nothing tested"
        return [pair, cell(none, ""), *(blank() for _ in range(len(_PAIR_COLUMNS) - 2))]
    seconds = [cell(number(r.cost.train_seconds, 1), r.cost.train_seconds) for r in (cheapest, best)]
    return [
        pair,
        _named(best, addresses),
        _gain(table, best),
        optional(best.gap_closed, share(best.gap_closed)),
        cell(str(len(found.alike)), len(found.alike)),
        _named(cheapest, addresses),
        _gain(table, cheapest),
        *seconds,
    ]


def _named(row: Row, addresses: Addresses) -> dict[str, Any]:
    return cell(row.method + row.marks, row.method, link=addresses.method(row.method))


def _gain(table: Table, row: Row) -> dict[str, Any]:
    if row.gain is None:
        return blank()
    return estimated(row.gain.difference, column_decimals(table, table.primary), sign=True)


def _method_row(found: MethodAdvice, addresses: Addresses) -> list[dict[str, Any]]:
    neither = found.pairs - found.helped - found.hurt
    counts = (found.pairs, found.helped, neither, found.hurt)
    return [
        cell(found.method, link=addresses.method(found.method)),
        *(cell(str(n), n) for n in counts),
        optional(found.closed, share(found.closed)),
    ]


def _counted(found: MethodAdvice, addresses: Addresses) -> dict[str, Any]:
    return dict(method=found.method, pairs=found.pairs, hurt=found.hurt, link=addresses.method(found.method))


def _benchmark(name: str, current: Sequence[tuple[Table, str]], addresses: Addresses) -> dict[str, Any]:
    mine = [(t, s) for t, s in current if t.benchmark == name]
    return dict(
        name=name,
        link=addresses.benchmark(name),
        data=mine[0][0].data,
        plot=_cost_plot([t for t, _ in mine]),
        tables=[_short(t, s, addresses) for t, s in mine],
    )


def _cost_plot(tables: Sequence[Table]) -> Any:
    """Quality against parameters of everything that a benchmark's pairs deploy; None where all have one size."""
    first = tables[0]
    found = [p for p in pareto(tables, "params").points if not p.flags]
    if len({p.cost for p in found}) < 2:
        return None
    places = {t.pair: column_decimals(t, t.primary) for t in tables}
    rows = [
        dict(
            method=p.method,
            role=p.role,
            flagged=False,
            mean=p.value.mean,
            parameters=p.cost,
            on_front=p.on_front,
            hover=f"{p.method} in {p.pair}: {number(p.value.mean, places[p.pair])}, {count(p.cost)} parameters",
            popover="",
        )
        for p in found
    ]
    heading = f"{title(first.primary)} {direction(first, first.primary)}"
    data = dict(title=heading, higher=first.higher_is_better, rows=rows)
    label = f"{heading} of {first.benchmark} against parameters; the tables of the benchmark have the same figures"
    return against(data, "parameters", "parameters", label, front=True)


def _short(table: Table, slug: str, addresses: Addresses) -> dict[str, Any]:
    """Teachers, the plain student and the best methods in few columns."""
    methods = [r for r in table.rows if r.role not in (PLAIN, TEACHER)]
    shown = [r for r in table.rows if r.role in (PLAIN, TEACHER)] + methods[:SHORT]
    heading = f"{title(table.primary)} {direction(table, table.primary)}"
    best = "descending" if table.higher_is_better else "ascending"
    return dict(
        id=f"short-{slug}",
        pair=table.pair,
        name=table.name,
        link=addresses.benchmark(table.benchmark, slug),
        models=f"{table.teacher or 'no teacher'} → {table.student}",
        columns=[
            column("method", text=True),
            column("rank"),
            column(heading, first=best),
            column("gain", first="descending"),
            column("p"),
            column("gap closed", first="descending"),
            column("params"),
        ],
        rows=[_short_row(table, row, addresses) for row in shown],
        more=max(0, len(methods) - SHORT),
    )


def _short_row(table: Table, row: Row, addresses: Addresses) -> list[dict[str, Any]]:
    return [
        _named(row, addresses),
        optional(row.rank, str(row.rank)),
        estimated(row.cells[table.primary].estimate, column_decimals(table, table.primary)),
        _gain(table, row),
        optional(row.p, probability(row.p)),
        optional(row.gap_closed, share(row.gap_closed)),
        cell(count(row.cost.parameters), row.cost.parameters),
    ]
