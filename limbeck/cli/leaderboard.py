"""`limbeck leaderboard`: shows, builds, draws, compares, verifies and reproduces results."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, help="Show, build, draw, compare, verify and reproduce benchmark results.")

ResultsFolder = Annotated[Path, typer.Option("--results", help="Folder of records.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
WithAblations = Annotated[
    bool, typer.Option("--ablations/--no-ablations", help="Methods at other values of an option.")
]
Names = Annotated[list[str] | None, typer.Argument(metavar="[BENCHMARK]...", help="All when none is named.")]
SiteFolder = Annotated[Path, typer.Option("--out", help="Folder of the page.")]
Runs = Annotated[Path | None, typer.Option(help="Folder of a suite's runs, for weights that the zoo does not have.")]
TeacherRuns = Annotated[
    Path | None, typer.Option(help="Folder of a suite's runs, for teachers that the zoo does not have.")
]
OnlyPair = Annotated[str | None, typer.Option("--pair", help="Only this one.")]
RESULTS = Path("results")
SITE = Path("out/leaderboard")


@app.command()
def show(
    benchmarks: Names = None,
    results: ResultsFolder = RESULTS,
    ablations: WithAblations = True,
    as_json: AsJson = False,
) -> None:
    """Print the tables of benchmarks: mean ± interval, gain over the plain student, rank, cost; then the ablations.

    Example: limbeck leaderboard show demo
    """
    from limbeck.engine.suite import benchmarks_of
    from limbeck.leaderboard.render import render
    from limbeck.leaderboard.store import load_results
    from limbeck.leaderboard.table import build_tables, to_json

    tables = build_tables(load_results(results, benchmarks=benchmarks_of(benchmarks)))
    if as_json:
        _print_json([to_json(t, ablations=ablations) for t in tables])
        return
    console = _console()
    for table in tables:
        render(table, console, ablations=ablations)


@app.command()
def build(
    results: ResultsFolder = RESULTS,
    out: SiteFolder = SITE,
    benchmark: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated.")] = None,
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "Limbeck leaderboard",
    readme: Annotated[Path | None, typer.Option(help="Also regenerate the tables in this Markdown file.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 when the tables in --readme are stale.")
    ] = False,
) -> None:
    """Build the static page of the results, and the tables of a README.

    Example: limbeck leaderboard build --out out/leaderboard --readme README.md
    """
    from limbeck.leaderboard.render import update_markdown
    from limbeck.leaderboard.site import build_site
    from limbeck.leaderboard.store import load_results
    from limbeck.leaderboard.table import build_tables

    if check:
        file = readme or Path("README.md")
        if update_markdown(file, build_tables(load_results(results)), check=True):
            typer.echo(
                f"{file}: tables are stale; run: limbeck leaderboard build --results {results} --readme {file}",
                err=True,
            )
            raise typer.Exit(1)
        typer.echo(f"{file}: tables are what the records say")
        return
    typer.echo(
        build_site(results, out, benchmarks=benchmark, title=title, note=lambda line: typer.echo(line, err=True))
    )
    if readme is not None:
        stale = update_markdown(readme, build_tables(load_results(results)))
        typer.echo(f"{readme}: {'tables regenerated' if stale else 'tables were up to date'}")


@app.command()
def examples(
    benchmark: str,
    results: ResultsFolder = RESULTS,
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

    with _progress(True) as progress:
        for plan in _planned(plan_examples, benchmark, results, runs, pair):
            bar = progress.add_task(plan.group.name, total=None)
            path = draw_examples(
                plan, out, results=results, legend=draw_legend, count=count, report=partial(_advance, progress, bar)
            )
            progress.console.print(str(path), markup=False, highlight=False)
    _say_shown(results, out)


@app.command()
def masks(
    benchmark: str,
    results: ResultsFolder = RESULTS,
    runs: TeacherRuns = None,
    out: SiteFolder = SITE,
    count: Annotated[int, typer.Option(min=1, help="Images of the validation split, drawn at random.")] = 3,
    pair: OnlyPair = None,
) -> None:
    """Train the recorded ACAM-KD run of the lowest seed again and draw its masks over training, for the page.

    Example: limbeck leaderboard masks bccd --results out/bccd/records --runs out/bccd/runs
    """
    from limbeck.leaderboard.pictures.masks import draw_masks, plan_masks

    with _progress(True) as progress:
        for plan in _planned(plan_masks, benchmark, results, runs, pair):
            bar = progress.add_task(plan.record.id, total=None)
            path, found = draw_masks(plan, out, results=results, count=count, report=partial(_advance, progress, bar))
            same = "the record's" if found.same_run else f"NOT the record's {found.student_sha256[:12]}…"
            said = f"{found.record}: the student's sha256 {found.rerun_sha256[:12]}… is {same}"
            progress.console.print(f"{said}\n{path}", markup=False, highlight=False)
    _say_shown(results, out)


@app.command()
def voxels(
    benchmark: str,
    results: ResultsFolder = RESULTS,
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

    for plan in _planned(plan_voxels, benchmark, results, runs, pair):
        path, _ = draw_voxels(plan, out, results=results, legend=draw_legend, count=count)
        typer.echo(f"{plan.record.id}\n{path}")
    _say_shown(results, out)


def _planned(
    plan: Callable[..., list[Any]], benchmark: str, results: Path, runs: Path | None, pair: str | None
) -> list[Any]:
    """What a kind of picture is drawn of: `plan` of the folder's records, with the weights of zoo and runs."""
    from limbeck.engine.suite import benchmarks_of
    from limbeck.leaderboard.store import load_results
    from limbeck.zoo import weight_files

    names = benchmarks_of([benchmark]) or []
    return plan(load_results(results, benchmarks=names), names, weights=weight_files(), runs=runs, pair=pair)


def _say_shown(results: Path, out: Path) -> None:
    typer.echo(f"shown on the page by: limbeck leaderboard build --results {results} --out {out}", err=True)


@app.command()
def compare(
    benchmark: str,
    a: str,
    b: str,
    results: ResultsFolder = RESULTS,
    pair: Annotated[str | None, typer.Option(help="One pair; all that have both methods otherwise.")] = None,
    ablations: WithAblations = True,
    as_json: AsJson = False,
) -> None:
    """Compare two methods on the seeds that both have: difference, interval, p, cost ratios; then the ablations.

    A variant is named as its records are: KD@temperature=2.0.

    Example: limbeck leaderboard compare digits DKD KD
    """
    from limbeck.engine.suite import benchmarks_of
    from limbeck.leaderboard.compare import compare_benchmark, comparison_json, render_comparison
    from limbeck.leaderboard.store import load_results

    names = benchmarks_of([benchmark]) or []
    loaded = load_results(results, benchmarks=names)
    found = [c for name in names for c in compare_benchmark(loaded, name, a, b, pair=pair)]
    if as_json:
        _print_json([comparison_json(f, ablations=ablations) for f in found])
        return
    console = _console()
    for comparison in found:
        render_comparison(comparison, console, ablations=ablations)


@app.command()
def verify(
    benchmarks: Names = None,
    results: ResultsFolder = RESULTS,
    runs: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate the zoo's weights again and say whether each record holds; exit 1 when one is off.

    Example: limbeck leaderboard verify bccd --results results --runs out/bccd/runs
    """
    from limbeck.engine.suite import benchmarks_of
    from limbeck.leaderboard.store import load_results
    from limbeck.leaderboard.verify import verification_json, verify_records, with_runs

    loaded = load_results(results, benchmarks=benchmarks_of(benchmarks))
    evaluate, weights = _evaluation()
    records = list({r.id: r for group in loaded for r in group.records}.values())
    weights = with_runs(weights, records, runs)
    done = []
    with _progress(not as_json) as progress:
        for one in progress.track(verify_records(records, evaluate, weights), total=len(records), description="verify"):
            done.append(one)
            if not as_json and one.verdict != "no weights":
                progress.console.print(f"{one.id}: {one.text}", markup=False, highlight=False)
    counts = {v: sum(d.verdict == v for d in done) for v in ("holds", "off", "no weights")}
    if as_json:
        _print_json([verification_json(d) for d in done])
    else:
        typer.echo(", ".join(f"{n} {verdict}" for verdict, n in counts.items()))
    if counts["off"]:
        raise typer.Exit(1)


@app.command()
def reproduce(ours: Path, theirs: Path, as_json: AsJson = False) -> None:
    """Look for each cell of THEIRS in OURS: identical, within interval, differs, missing; exit 1 for the last two.

    Example: limbeck leaderboard reproduce my-results results
    """
    from limbeck.leaderboard.reproduce import render_reproduction, reproduce_results, reproduction_json

    found = reproduce_results(ours, theirs)
    if as_json:
        _print_json(reproduction_json(found))
    else:
        render_reproduction(found, _console())
    if not found.holds:
        raise typer.Exit(1)


def _advance(progress: Any, bar: Any, done: int, total: int) -> None:
    progress.update(bar, completed=done, total=total)


def _evaluation() -> tuple[Any, Any]:
    from limbeck.engine.evaluate import evaluate_weights
    from limbeck.zoo import weight_files

    return evaluate_weights, weight_files()


def _console() -> Any:
    from rich.console import Console

    console = Console()
    # a pipe has no width of its own; 80 columns would cut the tables
    return console if console.is_terminal else Console(width=max(100, console.width))


def _progress(visible: bool) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(soft_wrap=True), disable=not visible, transient=True)


def _print_json(value: Any) -> None:
    import json

    typer.echo(json.dumps(value, indent=1))
