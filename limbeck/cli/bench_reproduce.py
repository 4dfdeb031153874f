"""`limbeck bench reproduce`: runs cells of our tables and of published ones again, and says what came out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limbeck.cli._options import DeviceOption, JobsOption, RayOption, ThreadsOption
from limbeck.cli.leaderboard_pictures import ResultsFolder
from limbeck.cli.leaderboard_reported import wide_console

if TYPE_CHECKING:
    from limbeck.engine.bench import Outcome
    from limbeck.engine.suite import Job


def reproduce(
    table: Annotated[
        str | None, typer.Argument(metavar="[TABLE]", help="A suite, a benchmark, BENCHMARK/PAIR, or reported:SOURCE.")
    ] = None,
    cells: Annotated[
        list[str] | None, typer.Option(metavar="METHOD[/SEED]", help="Only this method or run; repeatable.")
    ] = None,
    pair: Annotated[str | None, typer.Option(help="Only this pair.")] = None,
    results: ResultsFolder = Path("results"),
    out: Annotated[Path | None, typer.Option(help="Output folder; default out/reproduce-TABLE.")] = None,
    tolerance: Annotated[
        float | None, typer.Option(min=0, help="How far a run may be off; default: what the recorded seeds allow.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would run and what is missing.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the tables.")] = False,
    jobs: JobsOption = 0,
    threads: ThreadsOption = 1,
    device: DeviceOption = "cpu",
    ray: RayOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Run cells of a table again and say run by run: identical, within tolerance, differs, missing.

    Of a published table, what has a config here and its data runs; of the rest, what is missing is said.

    Example: limbeck bench reproduce digits --cells KD/0 --cells DKD/0
    """
    from limbeck.errors import ConfigError
    from limbeck.leaderboard.rerun import parse_cells
    from limbeck.leaderboard.rerun_reported import PREFIX

    if list_:
        _list()
        return
    if table is None:
        raise ConfigError("no table is named; list them with: limbeck bench reproduce --list")
    folder = out or Path("out") / f"reproduce-{Path(table.removeprefix(PREFIX)).stem}"

    def run(todo: list[Job], title: str) -> Outcome:
        return _run(todo, title, folder, jobs, threads, device, ray, quiet=as_json)

    asked = parse_cells(cells)
    if table.startswith(PREFIX):
        good = _published(table, asked, pair, results, folder, None if dry_run else run, as_json)
    else:
        good = _ours(table, asked, pair, results, folder, None if dry_run else run, tolerance, as_json)
    raise typer.Exit(0 if good else 1)


def _ours(
    table: str,
    cells: list[Any],
    pair: str | None,
    results: Path,
    folder: Path,
    run: Callable[[list[Job], str], Outcome] | None,
    tolerance: float | None,
    as_json: bool,
) -> bool:
    from limbeck.leaderboard.rerun import (
        cells_json,
        compare_cells,
        holds,
        plan_cells,
        recorded_cost,
        render_cells,
        table_suite,
    )

    found = plan_cells(table_suite(table), cells, pair=pair)
    ids = [job.id for job in found.jobs]
    if not as_json:
        typer.echo(recorded_cost(ids, results))
    if run is None:
        for identity in ids:
            typer.echo(f"{identity}{'' if identity in found.wanted else '  (needed by the others)'}")
        return True
    outcome = run(list(found.jobs), table)
    done = compare_cells(found.wanted, folder / "records", results, tolerance=tolerance, failed=outcome.failed)
    if as_json:
        typer.echo(json.dumps(cells_json(done), indent=1))
    else:
        render_cells(done, wide_console(), tolerance=tolerance)
    return holds(done) and not outcome.failed


def _published(
    table: str,
    cells: list[Any],
    pair: str | None,
    results: Path,
    folder: Path,
    run: Callable[[list[Job], str], Outcome] | None,
    as_json: bool,
) -> bool:
    from limbeck.engine.suite import plan
    from limbeck.leaderboard.rerun_reported import (
        published_cells,
        published_results,
        published_suite,
        render_published,
        render_results,
    )

    found = published_cells(table, cells, pair=pair)
    if as_json:
        typer.echo(json.dumps([cell.json for cell in found], indent=1))
    else:
        render_published(table, found, results, wide_console())
    suite = published_suite(table, found)
    if run is None or suite is None:
        return True
    outcome = run(plan(suite), table)
    if not as_json:
        render_results(published_results(found, folder / "records"), wide_console())
    return not outcome.failed


def _list() -> None:
    from limbeck.leaderboard.rerun_reported import render_list

    render_list(wide_console())


def _run(
    todo: list[Job], title: str, folder: Path, jobs: int, threads: int, device: str, ray: str | None, *, quiet: bool
) -> Outcome:
    from rich.console import Console

    from limbeck.cli._progress import suite_display
    from limbeck.engine.bench import run_jobs
    from limbeck.engine.output import pick_device

    console = Console(stderr=quiet)
    with suite_display(console, title, len(todo)) as display:
        return run_jobs(
            todo,
            folder,
            jobs=jobs,
            threads=threads,
            device=device if device == "cpu" else pick_device(device),
            ray=ray,
            on_event=display,
        )
