"""`limbeck bench`, `limbeck demo` and `limbeck reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limbeck.cli import bench_reproduce
from limbeck.cli._options import DeviceOption, JobsOption, RayOption, ThreadsOption

if TYPE_CHECKING:
    from limbeck.engine.bench import Outcome
    from limbeck.engine.suite import Suite

app = typer.Typer(no_args_is_help=True)
app.command("reproduce")(bench_reproduce.reproduce)

SuiteArgument = Annotated[str, typer.Argument(help="A suite: see `limbeck bench list`, or a .toml file.")]
SeedsOption = Annotated[int | None, typer.Option(help="Only the first N seeds.")]
OnlyOption = Annotated[list[str] | None, typer.Option("--only", help="Only this method, and plain; repeatable.")]


@app.command("run")
def run(
    suite: SuiteArgument,
    out: Annotated[Path | None, typer.Option(help="Output folder; default out/SUITE.")] = None,
    seeds: SeedsOption = None,
    only: OnlyOption = None,
    jobs: JobsOption = 0,
    threads: ThreadsOption = 1,
    device: DeviceOption = "cpu",
    ray: RayOption = None,
    predictions: Annotated[
        bool, typer.Option("--predictions/--no-predictions", help="Save those on the test split beside each student.")
    ] = True,
    released_teachers: Annotated[
        bool, typer.Option("--released-teachers", help="Take teachers that the zoo has, and train only the others.")
    ] = False,
    results: Annotated[Path, typer.Option(help="Folder with the records of released teachers.")] = Path("results"),
) -> None:
    """Make the runs of a suite that have no record yet, and show the table.

    Example: limbeck bench run diffusion --released-teachers --only PD
    """
    from limbeck.engine.suite import load_suite, plan

    folder = out or Path("out") / Path(suite).stem
    loaded = load_suite(suite)
    if released_teachers:
        from limbeck.zoo.teachers import take_teachers

        for identity in take_teachers(plan(loaded, seeds=seeds, only=only), folder, results):
            typer.echo(f"from the zoo: {identity}")
    outcome = _run(loaded, folder, seeds, only, jobs, threads, device, ray, predictions)
    raise typer.Exit(1 if outcome.failed else 0)


@app.command("list")
def list_() -> None:
    """List the suites.

    Example: limbeck bench list
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from limbeck.engine.suite import load_suite, plan, suites

    table = Table("suite", "what", "runs", "time on 2 cores", box=None)
    for name in suites():
        suite = load_suite(name)
        table.add_row(name, escape(suite.title), str(len(plan(suite))), escape(suite.minutes))
    Console().print(table)


@app.command("status")
def status(
    suite: SuiteArgument,
    out: Annotated[Path | None, typer.Option(help="Output folder; default out/SUITE.")] = None,
    seeds: SeedsOption = None,
) -> None:
    """Say which runs of a suite are done, missing, stale or failed.

    Example: limbeck bench status demo
    """
    from rich.console import Console
    from rich.table import Table

    from limbeck.engine.bench import Paths
    from limbeck.engine.suite import load_suite, plan, state

    folder = Paths(out or Path("out") / Path(suite).stem)
    jobs = plan(load_suite(suite), seeds=seeds)
    counts: dict[str, int] = {}
    table = Table("run", "state", "result", box=None)
    for job in jobs:
        found, record = state(job, folder.records)
        counts[found] = counts.get(found, 0) + 1
        value = "" if record is None else f"{record.primary_metric} {record.value:.2f}"
        table.add_row(job.id, found, value)
    console = Console()
    console.print(table)
    console.print(", ".join(f"{n} {name}" for name, n in sorted(counts.items())), highlight=False)


def demo(
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("out/demo"),
    seeds: SeedsOption = None,
    jobs: JobsOption = 0,
) -> None:
    """Distil on real handwritten digits, show the tables, and write a page.

    Scenes of digits are segmented and detected too where the extras 'segmentation' and 'detection' are installed.

    Example: limbeck demo --seeds 2
    """
    from limbeck.engine.suite import load_suite
    from limbeck.leaderboard import build_site

    suite, left_out = load_suite("demo").installed()
    for error in left_out:
        typer.echo(f"left out: {error}")
    outcome = _run(suite, out, seeds, None, jobs, 1, "cpu", None)
    build_site(out / "records", out / "site", title="Limbeck demo")
    index = out / "index.html"
    index.write_text('<!doctype html><meta http-equiv="refresh" content="0; url=site/index.html">\n', encoding="utf-8")
    typer.echo(f"page: {index}")
    raise typer.Exit(1 if outcome.failed else 0)


def reproduce(
    suite: SuiteArgument,
    results: Annotated[Path, typer.Option(help="Records to compare with.")] = Path("results"),
    out: Annotated[Path | None, typer.Option(help="Output folder; default out/reproduce-SUITE.")] = None,
    seeds: SeedsOption = None,
    only: OnlyOption = None,
    jobs: JobsOption = 0,
    threads: ThreadsOption = 1,
    device: DeviceOption = "cpu",
    ray: RayOption = None,
) -> None:
    """Re-run a suite and say, cell by cell, what matched the committed records.

    Example: limbeck reproduce demo --seeds 2
    """
    from rich.console import Console

    from limbeck.engine.config import PLAIN, TEACHER
    from limbeck.engine.suite import load_suite
    from limbeck.leaderboard import render_reproduction, reproduce_results

    folder = out or Path("out") / f"reproduce-{Path(suite).stem}"
    outcome = _run(load_suite(suite), folder, seeds, only, jobs, threads, device, ray)
    methods = [TEACHER, PLAIN, *only] if only else None
    report = reproduce_results(folder / "records", results, methods=methods)
    render_reproduction(report, Console())
    raise typer.Exit(1 if outcome.failed or not report.holds else 0)


def _run(
    suite: Suite,
    out: Path,
    seeds: int | None,
    only: list[str] | None,
    jobs: int,
    threads: int,
    device: str,
    ray: str | None,
    predictions: bool = True,
) -> Outcome:
    from rich.console import Console
    from rich.markup import escape

    from limbeck.cli._progress import suite_display
    from limbeck.engine.bench import run_suite
    from limbeck.engine.output import pick_device
    from limbeck.engine.suite import plan
    from limbeck.leaderboard import ResultsError, show_tables

    console = Console()
    total = len(plan(suite, seeds=seeds, only=only))
    with suite_display(console, suite.name, total) as display:
        outcome = run_suite(
            suite,
            out,
            seeds=seeds,
            only=only,
            jobs=jobs,
            threads=threads,
            device=device if device == "cpu" else pick_device(device),
            ray=ray,
            predictions=predictions,
            on_event=display,
        )
    if not outcome.made and not outcome.failed:
        console.print(f"all {len(outcome.found)} records of suite {suite.name} were there already: {out / 'records'}")
    for identity, message in outcome.failed.items():
        console.print(f"[red]failed[/] {escape(identity)}: {escape(message)}", highlight=False)
    try:
        show_tables(out / "records", console)
    except ResultsError as error:
        if not outcome.failed:  # with failures, what is left may be no table: the failures are what matters
            raise
        console.print(f"no table: {escape(str(error))}", highlight=False)
    return outcome
