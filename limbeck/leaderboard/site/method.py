"""What the site's template shows of a method: where it is written down, where it was measured, what it gained."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from limbeck.engine.config import PLAIN, TEACHER
from limbeck.engine.shipped import find_source
from limbeck.leaderboard.advice import helped, hurt
from limbeck.leaderboard.figures import count, number, probability, share
from limbeck.leaderboard.rows import Row
from limbeck.leaderboard.site.addresses import Addresses, task_title
from limbeck.leaderboard.site.cells import blank, cell, column, estimated, optional
from limbeck.leaderboard.site.data import left_out, newest
from limbeck.leaderboard.site.svg_plots import dots
from limbeck.leaderboard.table import Table, column_decimals, direction, title

_ARXIV = re.compile(r"arXiv:? ?(\d{4}\.\d{4,5})")
Measured = tuple[Table, Row, str]  # with the slug of the table's section
PAIRS = 200  # on a page: a line in a plot and one in a table each take about 1 kB
COLUMNS = [
    column("pair", text=True),
    column("task", text=True),
    column("metric", text=True),
    column("n", first="descending", help_="runs"),
    column("mean", first="descending"),
    column("plain", first="descending"),
    column("gain", first="descending", help_="over the plain student on shared seeds; positive is better"),
    column("p", help_="two-sided paired t-test, Holm-adjusted over the table's methods"),
    column("gap closed", first="descending"),
    column("rank"),
    column("params"),
    column("train s"),
]
INDEX_COLUMNS = [
    column("method", text=True),
    column("what", text=True),
    column("tasks", text=True),
    column("pairs", first="descending"),
    column("helped", first="descending", help_="pairs in which it is told apart from the plain student as better"),
    column("hurt", first="descending", help_="pairs in which it is told apart as worse"),
    column("runs", first="descending"),
]


def measured_methods(tables: Sequence[Table], slugs: Sequence[str]) -> dict[str, list[Measured]]:
    """Where each method, by its name in lower case, was measured."""
    found: dict[str, list[Measured]] = {}
    for table, slug in zip(tables, slugs, strict=True):
        for row in table.rows:
            if row.role not in (PLAIN, TEACHER):
                found.setdefault(row.method.lower(), []).append((table, row, slug))
    return dict(sorted(found.items()))


def method_view(
    measured: Sequence[Measured],
    parts: Mapping[str, Sequence[str]],
    addresses: Addresses,
    latest: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Everything that the template shows of one method, and of `every_row` also the lines that it has no room for.

    Args:
        parts: the registered names that a run is built of, by record id.
        latest: when the newest run of a table finished, by slug.
    """
    name, finished = measured[0][1].method, latest or {}
    shown = newest(measured, PAIRS, lambda one: finished.get(one[2], ""))
    every = [_row(*one, addresses) for one in measured]
    kept = {id(row) for _, row, _ in shown}
    return dict(
        name=name,
        sources=[_source(one) for one in source_names(measured, parts)],
        assumptions=list(dict.fromkeys(row.assumption for _, row, _ in measured if row.assumption)),
        columns=COLUMNS,
        rows=[line for line, (_, row, _) in zip(every, measured, strict=True) if id(row) in kept],
        every_row=every,
        left_out=left_out(len(shown), len(measured), f"methods/{addresses.methods[name.lower()]}.csv"),
        plots=_plots(name, shown),
        pairs=len(measured),
        helped=sum(helped(row) for _, row, _ in measured),
        hurt=sum(hurt(row) for _, row, _ in measured),
    )


def index_row(measured: Sequence[Measured], parts: Mapping[str, Sequence[str]], addresses: Addresses) -> list[Any]:
    """The method's line in the list of all."""
    name = measured[0][1].method
    said = [one for s in source_names(measured, parts) if (one := find_source(s)) is not None]
    counts = [sum(helped(r) for _, r, _ in measured), sum(hurt(r) for _, r, _ in measured)]
    return [
        cell(name, link=addresses.method(name)),
        cell("; ".join(dict.fromkeys(s.module.split("\n")[0] for s in said)) or "–"),
        cell(", ".join(dict.fromkeys(task_title(t.task) for t, _, _ in measured))),
        *(cell(str(n), n) for n in (len(measured), *counts, sum(r.n for _, r, _ in measured))),
    ]


def source_names(measured: Iterable[Measured], parts: Mapping[str, Sequence[str]]) -> list[str]:
    """The registered names that a method's runs are built of; the first run of a row speaks for all."""
    return list(dict.fromkeys(name for _, row, _ in measured for name in parts[next(iter(row.records.values()))]))


def _source(name: str) -> dict[str, Any]:
    found = find_source(name)
    if found is None:
        return dict(name=name, path="", module=[], text=[])
    return dict(name=name, path=found.path, module=linked_text(found.module), text=linked_text(found.text))


def _row(table: Table, row: Row, slug: str, addresses: Addresses) -> list[dict[str, Any]]:
    places = column_decimals(table, table.primary)
    plain = next((r for r in table.rows if r.role == PLAIN), None)
    flags = "".join(f" ({f})" for f in row.flags)
    return [
        cell(f"{table.name} v{table.version}{flags}", link=addresses.benchmark(table.benchmark, slug)),
        cell(task_title(table.task), link=addresses.task(table.task)),
        cell(f"{title(table.primary)} {direction(table, table.primary)}"),
        cell(str(row.n), row.n),
        estimated(row.cells[table.primary].estimate, places),
        blank() if plain is None else estimated(plain.cells[table.primary].estimate, places),
        blank() if row.gain is None else estimated(row.gain.difference, places, sign=True),
        optional(row.p, probability(row.p)),
        optional(row.gap_closed, share(row.gap_closed)),
        optional(row.rank, str(row.rank)),
        cell(count(row.cost.parameters) + "‡" * row.other_network, row.cost.parameters),
        cell(number(row.cost.train_seconds, 1), row.cost.train_seconds),
    ]


def _plots(name: str, measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Gains with intervals, one plot a metric, for points of two metrics do not compare."""
    by_metric: dict[str, list[dict[str, Any]]] = {}
    for table, row, _ in measured:
        if row.gain is None:
            continue
        gain, places = row.gain.difference, column_decimals(table, table.primary)
        half = "" if gain.half is None else f" ± {number(gain.half, places)}"
        by_metric.setdefault(title(table.primary), []).append(
            dict(
                method=table.name,
                role="method",
                flagged=bool(row.flags),
                mean=gain.mean,
                low=gain.mean if gain.low is None else gain.low,
                high=gain.mean if gain.high is None else gain.high,
                seeds=[],
                hover=f"{table.name}: {number(gain.mean, places, sign=True)}{half}",
                popover="",
            )
        )
    return [_plot(name, metric, rows) for metric, rows in by_metric.items()]


def _plot(name: str, metric: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    data = dict(title=f"gain in {metric}", higher=True, rows=rows)
    label = f"Gain in {metric} of {name} over the plain student by pair; the table below has the same figures"
    return dict(metric=metric, svg=dots(data, label, zero=True))


def linked_text(text: str) -> list[tuple[str, str | None]]:
    """A text in parts, each with the address that it links to: 'arXiv 1503.02531' to its abstract."""
    parts: list[tuple[str, str | None]] = []
    end = 0
    for match in _ARXIV.finditer(text):
        parts += [(text[end : match.start()], None), (match[0], f"https://arxiv.org/abs/{match[1]}")]
        end = match.end()
    return [(said, link) for said, link in (*parts, (text[end:], None)) if said]
