"""The pages of the site: one pass over tables, cards and records writes every file; templates are compiled once."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from limbeck import __version__
from limbeck.engine.config import PLAIN, TEACHER
from limbeck.engine.record import RunRecord
from limbeck.leaderboard.curves import build_curves, curves_json
from limbeck.leaderboard.site.addresses import SHORT, Addresses, addresses_of, shown_cards, task_title
from limbeck.leaderboard.site.cells import cell, column
from limbeck.leaderboard.site.curves import place_curves
from limbeck.leaderboard.site.method import INDEX_COLUMNS as METHOD_COLUMNS
from limbeck.leaderboard.site.method import index_row as method_row
from limbeck.leaderboard.site.method import measured_methods, method_view
from limbeck.leaderboard.site.numbers import numbers_view
from limbeck.leaderboard.site.record import record_view
from limbeck.leaderboard.site.student import INDEX_COLUMNS as STUDENT_COLUMNS
from limbeck.leaderboard.site.student import index_row as student_row
from limbeck.leaderboard.site.student import student_view
from limbeck.leaderboard.site.table import group_view, slugs
from limbeck.leaderboard.site.task import task_view
from limbeck.leaderboard.stats import CONFIDENCE
from limbeck.leaderboard.store import Results
from limbeck.leaderboard.table import Table, build_tables, to_json

MANIFEST = ".limbeck-site"
FOLDERS = ("assets", "benchmarks", "methods", "records", "students", "tables", "tasks")
ENTRIES = (*FOLDERS, "numbers.html", "index.html")
STUDENT = "resnet8w4.digits_kd"  # the home page's example where the site has no student
Track = Callable[[Iterable[RunRecord], int], Iterable[RunRecord]]


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
    records = {r.id: r for g in results for r in g.records}
    kept = shown_cards(cards, records)
    addresses = addresses_of(tables, kept)
    pages = _Pages(made, title, tables, records, addresses)
    views = _write_benchmarks(pages, results, tables, names, pictures)
    for task in pages.tasks:
        mine = [(t, n) for t, n in zip(tables, names, strict=True) if t.task == task]
        view = task_view(task, [t for t, _ in mine], [n for _, n in mine], addresses)
        pages.write(addresses.task(task), "task", view=view)
    _write_methods(pages, tables, names)
    drawn = {(g.benchmark, g.version, g.pair): shown for g, shown in zip(results, pictures, strict=True)}
    _write_students(pages, kept, drawn)
    _write_records(pages, results, track)
    pages.write("numbers.html", "numbers", **numbers_view(results, records.values(), views))
    pages.write("index.html", "home", **_home(pages, tables, kept))
    _write_assets(made)
    (made / MANIFEST).write_text("\n".join(ENTRIES) + "\n", encoding="utf-8")


class _Pages:
    """Renders templates into files below a folder."""

    def __init__(
        self,
        made: Path,
        title: str,
        tables: Sequence[Table],
        records: Mapping[str, RunRecord],
        addresses: Addresses,
    ) -> None:
        from jinja2 import Environment, PackageLoader, StrictUndefined

        self.made, self.records, self.addresses = made, records, addresses
        self.tasks = sorted({t.task for t in tables}, key=task_title)
        self.jinja = Environment(
            loader=PackageLoader("limbeck.leaderboard.site", "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.jinja.globals |= dict(
            confidence=f"{100 * CONFIDENCE:.0f}",
            site=dict(
                title=title,
                version=__version__,
                records=len(records),
                latest=max(r.finished for r in records.values()),
                tasks=[dict(title=SHORT.get(t) or task_title(t), link=addresses.task(t)) for t in self.tasks],
            ),
        )

    def write(self, address: str, template: str, *, file: str | None = None, **context: Any) -> None:
        """Write one page.

        Args:
            file: below the folder, where it is not the address itself, which is quoted.
        """
        root = "../" * address.count("/")
        text = self.jinja.get_template(f"{template}.html.j2").render(root=root, here=address, **context)
        (self.made / (file or address)).write_text(text, encoding="utf-8")


def _write_benchmarks(
    pages: _Pages,
    results: Results,
    tables: Sequence[Table],
    names: Sequence[str],
    pictures: Sequence[list[dict[str, Any]]],
) -> list[dict[str, Any]]:
    """A page a benchmark, and its tables and curves as JSON; returns the views of its groups."""
    views = []
    for table, name, drawn in zip(tables, names, pictures, strict=True):
        _write_json(pages.made / "tables" / f"{name}.json", to_json(table))
        view = group_view(table, name, link=pages.addresses.record)
        for row in (*view["rows"], *view["references"], *view["variants"]):
            row["page"] = pages.addresses.method(row["method"])
        views.append(view | dict(pictures=drawn))
    for name, curves in place_curves(build_curves(results), views):
        _write_json(pages.made / "tables" / f"{name}.json", curves_json(curves))
    for benchmark in pages.addresses.benchmarks:
        groups = [v for v in views if v["benchmark"] == benchmark]
        newest = max(v["version"] for v in groups)
        for view in groups:
            view["old"] = view["version"] < newest
        used = dict.fromkeys(t.task for t in tables if t.benchmark == benchmark)
        tasks = [dict(title=task_title(t), link=pages.addresses.task(t)) for t in used]
        pages.write(pages.addresses.benchmark(benchmark), "benchmark", name=benchmark, groups=groups, tasks=tasks)
    return views


def _write_methods(pages: _Pages, tables: Sequence[Table], names: Sequence[str]) -> None:
    rows = []
    for name, measured in measured_methods(tables, names).items():
        view = method_view(measured, pages.records, pages.addresses)
        pages.write(f"methods/{pages.addresses.methods[name]}.html", "method", view=view)
        rows.append(method_row(measured, pages.records, pages.addresses))
    lead = f"{len(rows)} methods that were measured; each page has the gains in all pairs, with intervals."
    pages.write("methods/index.html", "list", heading="Methods", lead=lead, columns=METHOD_COLUMNS, rows=rows)


def _write_students(
    pages: _Pages, cards: Sequence[Mapping[str, Any]], drawn: Mapping[tuple[str, int, str], list[dict[str, Any]]]
) -> None:
    rows = []
    for card in cards:
        record = pages.records[card["record"]]
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


def _write_records(pages: _Pages, results: Results, track: Track | None) -> None:
    """A page a record, and its file beside it."""
    records = [pages.records[identity] for identity in sorted(pages.records)]
    folders: set[Path] = set()
    for record in track(records, len(records)) if track is not None else records:
        place = pages.made / "records" / f"{record.id}.json"
        if place.parent not in folders:
            place.parent.mkdir(parents=True, exist_ok=True)
            folders.add(place.parent)
        shutil.copyfile(results.paths[record.id], place)
        view = record_view(record, pages.records, pages.addresses)
        pages.write(pages.addresses.record(record.id), "record", file=f"records/{record.id}.html", view=view)


def _home(pages: _Pages, tables: Sequence[Table], cards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the home page shows: commands for the three jobs, tasks with counts, benchmarks."""
    names = [card["name"] for card in cards]
    student = STUDENT if STUDENT in names or not names else names[0]
    several = [(t, found) for t in tables if len(found := [r for r in t.rows if r.role == "method"]) > 1]
    table, compared = max(several, key=lambda one: sum(r.n for r in one[1]), default=(tables[0], []))
    a, b = (shlex.quote(r.method) for r in compared[:2]) if compared else ("KD", PLAIN)
    return dict(
        students=len(cards),
        use=f"limbeck zoo list\nlimbeck zoo info {student}\nlimbeck zoo predict {student} image.png",
        reproduce="limbeck bench list\nlimbeck reproduce demo",
        choose=f"limbeck leaderboard show {table.benchmark}\nlimbeck leaderboard compare {table.benchmark} {a} {b}",
        columns=[
            column("task", text=True),
            *(column(name, first="descending") for name in ("benchmarks", "pairs", "methods", "runs", "students")),
        ],
        rows=[_task_row(pages, task, tables, cards) for task in pages.tasks],
        benchmarks=[_benchmark(pages, name, tables) for name in pages.addresses.benchmarks],
    )


def _task_row(
    pages: _Pages, task: str, tables: Sequence[Table], cards: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    mine = [t for t in tables if t.task == task]
    counts = (
        len({t.benchmark for t in mine}),
        len({t.name for t in mine}),
        len(_methods(mine)),
        sum(r.task == task for r in pages.records.values()),
        sum(card["task"] == task for card in cards),
    )
    return [cell(task_title(task), link=pages.addresses.task(task)), *(cell(str(n), n) for n in counts)]


def _benchmark(pages: _Pages, name: str, tables: Sequence[Table]) -> dict[str, Any]:
    mine = [t for t in tables if t.benchmark == name]
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


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
