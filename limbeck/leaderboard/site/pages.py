"""The pages of the site: one pass over tables, cards and records writes every file; templates are compiled once."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck import __version__
from limbeck.engine.config import PLAIN, TEACHER
from limbeck.engine.record import RunRecord
from limbeck.leaderboard.curves import build_curves, curves_json
from limbeck.leaderboard.shelf import Shelf
from limbeck.leaderboard.site.addresses import SHORT, Addresses, addresses_of, shown_cards, task_title
from limbeck.leaderboard.site.cells import cell, column
from limbeck.leaderboard.site.curves import place_curves
from limbeck.leaderboard.site.data import write_csv, write_json
from limbeck.leaderboard.site.method import INDEX_COLUMNS as METHOD_COLUMNS
from limbeck.leaderboard.site.method import index_row as method_row
from limbeck.leaderboard.site.method import measured_methods, method_view
from limbeck.leaderboard.site.numbers import numbers_view
from limbeck.leaderboard.site.records import write_records
from limbeck.leaderboard.site.renderer import Pages
from limbeck.leaderboard.site.student import INDEX_COLUMNS as STUDENT_COLUMNS
from limbeck.leaderboard.site.student import index_row as student_row
from limbeck.leaderboard.site.student import student_view
from limbeck.leaderboard.site.table import group_view, slugs
from limbeck.leaderboard.site.task import task_view
from limbeck.leaderboard.store import Group, Results
from limbeck.leaderboard.table import Table, build_tables

if TYPE_CHECKING:
    import polars as pl

MANIFEST = ".limbeck-site"
FOLDERS = ("assets", "benchmarks", "methods", "records", "students", "tables", "tasks")
ENTRIES = (*FOLDERS, "numbers.html", "index.html")
STUDENT = "resnet8w4.digits_kd"  # the home page's example where the site has no student
Track = Callable[[Iterable[str], int], Iterable[str]]
Shown = tuple[Group, Table, str, list[dict[str, Any]]]  # with the slug of its section, and its pictures


def write_site(
    made: Path,
    results: Results,
    title: str,
    pictures: Sequence[list[dict[str, Any]]],
    cards: Sequence[Mapping[str, Any]],
    track: Track | None = None,
) -> None:
    """Write all files of a site into a new folder.

    Args:
        pictures: of each group, as `pictures_of` gives them.
        cards, track: see `build_site`.
    """
    for folder in FOLDERS:
        (made / folder).mkdir(parents=True)
    tables = build_tables(results)
    names = slugs(tables)
    shown = results.runs.unique("id", keep="first", maintain_order=True)
    latest = {name: str(g.runs["finished"].max()) for g, name in zip(results, names, strict=True)}
    students = _students(cards, results, set(shown["id"]))
    kept = shown_cards(cards, students)
    addresses = addresses_of(tables, kept)
    pages = Pages(made, _frame(title, tables, shown, addresses), addresses)
    with closing(write_records(pages, shown.sort("id"))) as written:  # goes on beside what follows
        has_curves = _write_benchmarks(pages, results, tables, names, pictures)
        tasks = _tasks(tables)
        for task in tasks:
            mine = [(t, n) for t, n in zip(tables, names, strict=True) if t.task == task]
            view = task_view(task, [t for t, _ in mine], [n for _, n in mine], addresses, latest)
            pages.write(addresses.task(task), "task", view=view)
            _write_rest(pages, view, view["pair_columns"], view["every_pair"])
        _write_methods(pages, tables, names, dict(shown.select("id", "parts").iter_rows()), latest)
        drawn = {(g.benchmark, g.version, g.pair): shown for g, shown in zip(results, pictures, strict=True)}
        _write_students(pages, kept, students, drawn)
        pages.write("numbers.html", "numbers", **numbers_view(results, tables, has_curves=has_curves))
        runs = dict(shown.group_by("task").len().iter_rows())
        pages.write("index.html", "home", **_home(pages, tasks, tables, kept, runs))
        _write_assets(made)
        for _ in track(written, len(shown)) if track is not None else written:
            pass
    (made / MANIFEST).write_text("\n".join(ENTRIES) + "\n", encoding="utf-8")


def _tasks(tables: Iterable[Table]) -> list[str]:
    return sorted({t.task for t in tables}, key=task_title)


def _frame(title: str, tables: Iterable[Table], shown: pl.DataFrame, addresses: Addresses) -> dict[str, Any]:
    """What the frame around every page says."""
    return dict(
        title=title,
        version=__version__,
        records=len(shown),
        latest=shown["finished"].max(),
        tasks=[dict(title=SHORT.get(t) or task_title(t), link=addresses.task(t)) for t in _tasks(tables)],
    )


def _students(cards: Iterable[Mapping[str, Any]], results: Results, ids: Collection[str]) -> dict[str, RunRecord]:
    """The records of cards that are among those shown, by id."""
    shelf = Shelf(*results.folders)
    return {card["record"]: shelf[card["record"]] for card in cards if card["record"] in ids}


def _write_benchmarks(
    pages: Pages,
    results: Results,
    tables: Sequence[Table],
    names: Sequence[str],
    pictures: Sequence[list[dict[str, Any]]],
) -> bool:
    """A page a benchmark, and its tables and curves as JSON; returns whether there are curves."""
    shown: dict[str, list[Shown]] = {}
    for one in zip(results, tables, names, pictures, strict=True):
        shown.setdefault(one[0].benchmark, []).append(one)
    have_curves = [_write_benchmark(pages, benchmark, shown[benchmark]) for benchmark in pages.addresses.benchmarks]
    return any(have_curves)


def _write_benchmark(pages: Pages, benchmark: str, shown: Sequence[Shown]) -> bool:
    views = []
    for _, table, name, drawn in shown:
        write_json(pages.made / "tables" / f"{name}.json", table)
        view = group_view(table, name, link=pages.addresses.record)
        for row in (*view["rows"], *view["references"], *view["variants"]):
            row["page"] = pages.addresses.method(row["method"])
        views.append(view | dict(pictures=drawn))
    placed = place_curves(build_curves(group for group, *_ in shown), views)
    for name, curves in placed:
        write_json(pages.made / "tables" / f"{name}.json", curves_json(curves))
    newest = max(v["version"] for v in views)
    for view in views:
        view["old"] = view["version"] < newest
    used = dict.fromkeys(table.task for _, table, *_ in shown)
    tasks = [dict(title=task_title(t), link=pages.addresses.task(t)) for t in used]
    pages.write(pages.addresses.benchmark(benchmark), "benchmark", name=benchmark, groups=views, tasks=tasks)
    return bool(placed)


def _write_methods(
    pages: Pages,
    tables: Sequence[Table],
    names: Sequence[str],
    parts: Mapping[str, Sequence[str]],
    latest: Mapping[str, str],
) -> None:
    rows = []
    for name, measured in measured_methods(tables, names).items():
        view = method_view(measured, parts, pages.addresses, latest)
        pages.write(f"methods/{pages.addresses.methods[name]}.html", "method", view=view)
        _write_rest(pages, view, view["columns"], view["every_row"])
        rows.append(method_row(measured, parts, pages.addresses))
    lead = f"{len(rows)} methods that were measured; each page has the gains in all pairs, with intervals."
    pages.write("methods/index.html", "list", heading="Methods", lead=lead, columns=METHOD_COLUMNS, rows=rows)


def _write_rest(pages: Pages, view: Mapping[str, Any], columns: Sequence[Any], rows: Iterable[Any]) -> None:
    """All lines of a table as CSV, where its page leaves some out."""
    if view["left_out"]:
        write_csv(pages.made / view["left_out"]["link"], columns, rows)


def _write_students(
    pages: Pages,
    cards: Sequence[Mapping[str, Any]],
    records: Mapping[str, RunRecord],
    drawn: Mapping[tuple[str, int, str], list[dict[str, Any]]],
) -> None:
    rows = []
    for card in cards:
        record = records[card["record"]]
        shown = drawn.get((record.benchmark, record.benchmark_version, record.pair), [])
        pages.write(
            pages.addresses.student(record.id),
            "student",
            file=f"students/{card['name']}.html",
            view=student_view(card, record, pages.addresses, shown),
        )
        rows.append(student_row(card, record, pages.addresses))
    lead = f"{len(rows)} students and teachers whose weights can be loaded; each page has the card."
    none = "No student of these runs is in the zoo."
    pages.write(
        "students/index.html",
        "list",
        heading="Students",
        lead=lead if rows else none,
        columns=STUDENT_COLUMNS,
        rows=rows,
    )


def _home(
    pages: Pages,
    tasks: Sequence[str],
    tables: Sequence[Table],
    cards: Sequence[Mapping[str, Any]],
    runs: Mapping[str, int],
) -> dict[str, Any]:
    """What the home page shows: commands for the three jobs, tasks with counts, benchmarks.

    Args:
        runs: how many records a task has.
    """
    names = [card["name"] for card in cards]
    student = STUDENT if STUDENT in names or not names else names[0]
    several = [(t, found) for t in tables if len(found := [r for r in t.rows if r.role == "method"]) > 1]
    table, compared = max(several, key=lambda one: sum(r.n for r in one[1]), default=(tables[0], []))
    a, b = (shlex.quote(r.method) for r in compared[:2]) if compared else ("KD", PLAIN)
    by_benchmark: dict[str, list[Table]] = {}
    for one in tables:
        by_benchmark.setdefault(one.benchmark, []).append(one)
    return dict(
        students=len(cards),
        use=f"limbeck zoo list\nlimbeck zoo info {student}\nlimbeck zoo predict {student} image.png",
        reproduce="limbeck bench list\nlimbeck reproduce demo",
        choose=f"limbeck leaderboard show {table.benchmark}\nlimbeck leaderboard compare {table.benchmark} {a} {b}",
        columns=[
            column("task", text=True),
            *(column(name, first="descending") for name in ("benchmarks", "pairs", "methods", "runs", "students")),
        ],
        rows=[_task_row(pages, task, tables, cards, runs[task]) for task in tasks],
        benchmarks=[_benchmark(pages, name, mine) for name, mine in by_benchmark.items()],
    )


def _task_row(
    pages: Pages, task: str, tables: Sequence[Table], cards: Sequence[Mapping[str, Any]], runs: int
) -> list[dict[str, Any]]:
    mine = [t for t in tables if t.task == task]
    counts = (
        len({t.benchmark for t in mine}),
        len({t.name for t in mine}),
        len(_methods(mine)),
        runs,
        sum(card["task"] == task for card in cards),
    )
    return [cell(task_title(task), link=pages.addresses.task(task)), *(cell(str(n), n) for n in counts)]


def _benchmark(pages: Pages, name: str, mine: Sequence[Table]) -> dict[str, Any]:
    return dict(
        name=name,
        link=pages.addresses.benchmark(name),
        task=task_title(mine[0].task),
        data=f"{mine[0].data['train_samples']:,} training samples of {mine[0].data['name']}",
        pairs=len({t.pair for t in mine}),
        methods=len(_methods(mine)),
    )


def _methods(tables: Iterable[Table]) -> set[str]:
    return {r.method.lower() for t in tables for r in t.rows if r.role not in (PLAIN, TEACHER)}


def _write_assets(made: Path) -> None:
    static = files("limbeck.leaderboard.site") / "static"
    for name in ("style.css", "page.js"):
        (made / "assets" / name).write_bytes((static / name).read_bytes())
