"""The drawing commands of `limbeck leaderboard`: pictures for the page, of records and the weights behind them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer


def place(named: str) -> Path:
    """The folder of records that an option names; a Git URL is cloned into the cache."""
    from limbeck.leaderboard.gather import resolve_results

    return resolve_results(named)


RESULTS_HELP = "Folder of records, or git+URL@ref#subfolder"
ResultsFolder = Annotated[
    Path, typer.Option("--results", parser=place, metavar="FOLDER|GIT-URL", help=f"{RESULTS_HELP}.")
]
ResultsFolders = Annotated[
    list[Path],
    typer.Option("--results", parser=place, metavar="FOLDER|GIT-URL", help=f"{RESULTS_HELP}; may be repeated."),
]
SiteFolder = Annotated[Path, typer.Option("--out", help="Folder of the page.")]
Runs = Annotated[Path | None, typer.Option(help="Folder of a suite's runs, for weights that the zoo does not have.")]
TeacherRuns = Annotated[
    Path | None, typer.Option(help="Folder of a suite's runs, for teachers that the zoo does not have.")
]
OnlyPair = Annotated[str | None, typer.Option("--pair", help="Only this one.")]
RESULTS = [Path("results")]
SITE = Path("out/leaderboard")


def examples(
    benchmark: str,
    results: ResultsFolders = RESULTS,
    runs: Runs = None,
    out: SiteFolder = SITE,
    count: Annotated[int, typer.Option(min=1, help="Images; half of them, rounded up, are drawn at random.")] = 4,
    pair: OnlyPair = None,
) -> None:
    """Draw test images with truth and predictions of teacher, plain and best student, for the page that build makes.

    Example: limbeck leaderboard examples camvid --results out/camvid/records --runs out/camvid/runs
    """
    from limbeck.leaderboard.pictures.examples import draw_examples, plan_examples
    from limbeck.zoo.overlay import draw_legend

    with progress(True) as bars:
        for plan in planned(plan_examples, benchmark, results, runs, pair):
            bar = bars.add_task(plan.group.name, total=None)
            path = draw_examples(
                plan, out, results=results, legend=draw_legend, count=count, report=partial(advance, bars, bar)
            )
            bars.console.print(str(path), markup=False, highlight=False)
    say_shown(results, out)


def masks(
    benchmark: str,
    results: ResultsFolders = RESULTS,
    runs: TeacherRuns = None,
    out: SiteFolder = SITE,
    count: Annotated[int, typer.Option(min=1, help="Images of the validation split, drawn at random.")] = 3,
    pair: OnlyPair = None,
) -> None:
    """Train the recorded ACAM-KD run of the lowest seed again and draw its masks over training, for the page.

    Example: limbeck leaderboard masks bccd --results out/bccd/records --runs out/bccd/runs
    """
    from limbeck.leaderboard.pictures.masks import draw_masks, plan_masks

    with progress(True) as bars:
        for plan in planned(plan_masks, benchmark, results, runs, pair):
            bar = bars.add_task(plan.record.id, total=None)
            path, found = draw_masks(plan, out, results=results, count=count, report=partial(advance, bars, bar))
            same = "the record's" if found.same_run else f"NOT the record's {found.student_sha256[:12]}…"
            said = f"{found.record}: the student's sha256 {found.rerun_sha256[:12]}… is {same}"
            bars.console.print(f"{said}\n{path}", markup=False, highlight=False)
    say_shown(results, out)


def voxels(
    benchmark: str,
    results: ResultsFolders = RESULTS,
    runs: TeacherRuns = None,
    out: SiteFolder = SITE,
    count: Annotated[int, typer.Option(min=1, help="Frames of the validation split, drawn at random.")] = 3,
    pair: OnlyPair = None,
) -> None:
    """Draw which voxels PointDistiller compares in LiDAR frames and how they are weighted, for the page.

    Example: limbeck leaderboard voxels lidar-scenes --results out/lidar/records --runs out/lidar/runs
    """
    from limbeck.leaderboard.pictures.voxels import draw_voxels, plan_voxels
    from limbeck.zoo.overlay import draw_legend

    for plan in planned(plan_voxels, benchmark, results, runs, pair):
        path, _ = draw_voxels(plan, out, results=results, legend=draw_legend, count=count)
        typer.echo(f"{plan.record.id}\n{path}")
    say_shown(results, out)


def reliability(
    benchmark: str,
    results: ResultsFolders = RESULTS,
    runs: Runs = None,
    out: SiteFolder = SITE,
    pair: OnlyPair = None,
) -> None:
    """Draw how sure and how right both heads of a DHO student and its answer are on the test split, for the page.

    Example: limbeck leaderboard reliability dho --results out/dho/records --runs out/dho/runs
    """
    from limbeck.leaderboard.pictures.reliability import draw_reliability, plan_reliability
    from limbeck.zoo.overlay import draw_legend

    for plan in planned(plan_reliability, benchmark, results, runs, pair):
        path, _ = draw_reliability(plan, out, results=results, legend=draw_legend)
        typer.echo(str(path))
    say_shown(results, out)


def chosen(
    benchmark: str,
    results: ResultsFolders = RESULTS,
    runs: Annotated[Path | None, typer.Option(help="Folder of the suite's runs, which say what was chosen.")] = None,
    out: SiteFolder = SITE,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, from the first choice on.")] = 2,
    count: Annotated[int, typer.Option(min=1, help="Images a round, the first that were chosen.")] = 20,
    pair: OnlyPair = None,
) -> None:
    """Draw the images that each method of an active loop chose in its first rounds, for the page.

    Example: limbeck leaderboard chosen active --results out/active/records --runs out/active/runs
    """
    from limbeck.leaderboard.pictures.chosen import draw_chosen, plan_chosen

    for plan in planned(plan_chosen, benchmark, results, runs, pair):
        path, _ = draw_chosen(plan, out, results=results, rounds=rounds, count=count)
        typer.echo(str(path))
    say_shown(results, out)


def planned(
    plan: Callable[..., list[Any]], benchmark: str, results: list[Path], runs: Path | None, pair: str | None
) -> list[Any]:
    """What a kind of picture is drawn of: `plan` of the folders' records, with the weights of zoo and runs."""
    from limbeck.engine.suite import benchmarks_of
    from limbeck.leaderboard.store import load_results
    from limbeck.zoo import weight_files

    names = benchmarks_of([benchmark]) or []
    return plan(load_results(results, benchmarks=names), names, weights=weight_files(), runs=runs, pair=pair)


def say_shown(results: list[Path], out: Path) -> None:
    """Which command puts what was drawn on the page."""
    typer.echo(f"shown on the page by: limbeck leaderboard build {as_options(results)} --out {out}", err=True)


def as_options(results: list[Path]) -> str:
    """The folders of records as they are typed."""
    return " ".join(f"--results {folder}" for folder in results)


def progress(visible: bool) -> Any:
    """A bar for each of several long tasks, on the terminal alone."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(soft_wrap=True), disable=not visible, transient=True)


def advance(bars: Any, bar: Any, done: int, total: int) -> None:
    """Move a bar of `progress`."""
    bars.update(bar, completed=done, total=total)
