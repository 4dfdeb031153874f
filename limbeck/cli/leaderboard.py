"""`limbeck leaderboard`: shows, builds, draws, compares, verifies and reproduces results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from limbeck.cli import leaderboard_generated as generated
from limbeck.cli import leaderboard_pictures as pictures
from limbeck.cli import leaderboard_reported as reported_tables
from limbeck.cli import leaderboard_submit as contributions
from limbeck.cli import leaderboard_tasks as tasks
from limbeck.cli.leaderboard_pictures import RESULTS, SITE, ResultsFolders, Runs, SiteFolder, place

app = typer.Typer(no_args_is_help=True, help="Show, build, draw, compare, verify and reproduce benchmark results.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
WithAblations = Annotated[
    bool, typer.Option("--ablations/--no-ablations", help="Methods at other values of an option.")
]
Records = Annotated[Path, typer.Argument(parser=place, metavar="FOLDER|GIT-URL")]
Names = Annotated[list[str] | None, typer.Argument(metavar="[BENCHMARK]...", help="All when none is named.")]


@app.command()
def show(
    benchmarks: Names = None,
    results: ResultsFolders = RESULTS,
    ablations: WithAblations = True,
    as_json: AsJson = False,
) -> None:
    """Print the tables of benchmarks: mean ± interval, gain over the plain student, rank, cost; then the ablations.

    Example: limbeck leaderboard show demo
    """
    from limbeck.cli._reading import reading
    from limbeck.engine.suite import benchmarks_of
    from limbeck.leaderboard.render import render
    from limbeck.leaderboard.store import load_results
    from limbeck.leaderboard.table import build_tables, to_json

    with reading() as report:
        loaded = load_results(results, benchmarks=benchmarks_of(benchmarks), report=report)
    tables = build_tables(loaded)
    if as_json:
        _print_json([to_json(t, ablations=ablations) for t in tables])
        return
    console = _console()
    for table in tables:
        render(table, console, ablations=ablations)


@app.command()
def build(
    results: ResultsFolders = RESULTS,
    out: SiteFolder = SITE,
    benchmark: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated.")] = None,
    title: Annotated[str, typer.Option(help="Heading of the site.")] = "Limbeck leaderboard",
    readme: Annotated[Path | None, typer.Option(help="Also regenerate the tables in this Markdown file.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 when the tables in --readme are stale.")
    ] = False,
) -> None:
    """Build the static site of the results and of the zoo's students, and the tables of a README.

    Example: limbeck leaderboard build --out out/leaderboard --readme README.md
    """
    from limbeck.leaderboard.render import update_markdown
    from limbeck.leaderboard.site.build import build_site
    from limbeck.leaderboard.store import load_results
    from limbeck.leaderboard.table import build_tables
    from limbeck.zoo import list_students

    if check:
        file = readme or Path("README.md")
        if update_markdown(file, build_tables(load_results(results)), check=True):
            command = f"limbeck leaderboard build {pictures.as_options(results)} --readme {file}"
            typer.echo(f"{file}: tables are stale; run: {command}", err=True)
            raise typer.Exit(1)
        typer.echo(f"{file}: tables are what the records say")
        return
    cards = [card.model_dump(mode="json") for card in list_students()]
    with pictures.progress(_console().is_terminal) as progress:
        index = build_site(
            results,
            out,
            benchmarks=benchmark,
            title=title,
            cards=cards,
            note=lambda line: typer.echo(line, err=True),
            track=lambda records, total: progress.track(records, total=total, description="records"),
        )
    typer.echo(index)
    if readme is not None:
        stale = update_markdown(readme, build_tables(load_results(results)))
        typer.echo(f"{readme}: {'tables regenerated' if stale else 'tables were up to date'}")


for _command in (
    pictures.examples,
    pictures.masks,
    pictures.voxels,
    pictures.reliability,
    pictures.chosen,
    generated.samples,
    generated.trajectories,
    generated.hand_over,
    generated.controls,
    reported_tables.reported,
    reported_tables.compare_reported,
    contributions.submit,
    tasks.across,
    tasks.pareto,
):
    app.command()(_command)


@app.command()
def compare(
    benchmark: Annotated[str, typer.Argument(metavar="[BENCHMARK]")],
    a: Annotated[str | None, typer.Argument(help="All methods' curves by labels where none is named.")] = None,
    b: Annotated[str | None, typer.Argument()] = None,
    results: ResultsFolders = RESULTS,
    pair: Annotated[str | None, typer.Option(help="One pair; all that have both methods otherwise.")] = None,
    task: Annotated[
        str | None, typer.Option(help="Compare A B over all pairs of this task; then no BENCHMARK is named.")
    ] = None,
    metric: tasks.Metric = None,
    ablations: WithAblations = True,
    as_json: AsJson = False,
) -> None:
    """Compare two methods on the seeds that both have: difference, interval, p, cost ratios; then by labels, ablations.

    A variant is named as its records are: KD@temperature=2.0. With --task, A and B alone are named: is the difference
    real over the pairs of a task?

    Example: limbeck leaderboard compare digits DKD KD
    """
    from limbeck.engine.suite import benchmarks_of
    from limbeck.errors import ConfigError
    from limbeck.leaderboard.compare import compare_benchmark, comparison_json, render_comparison
    from limbeck.leaderboard.render_curves import render_compared
    from limbeck.leaderboard.store import load_results

    if task is not None:
        if a is None or b is not None:
            raise ConfigError("with --task two methods alone are named, and no benchmark: compare DKD KD --task TASK")
        tasks.compare_over_pairs(benchmark, a, task, metric, results, as_json)
        return
    if a is None:
        _show_curves(benchmark, results, pair, as_json)
        return
    if b is None:
        raise ConfigError(f"{a} alone is nothing to compare; name a second method: compare {benchmark} {a} plain")
    names = benchmarks_of([benchmark]) or []
    loaded = load_results(results, benchmarks=names)
    found = [c for name in names for c in compare_benchmark(loaded, name, a, b, pair=pair)]
    if as_json:
        _print_json([comparison_json(f, ablations=ablations) for f in found])
        return
    console = _console()
    for comparison in found:
        render_comparison(comparison, console, ablations=ablations)
    render_compared([f.curve for f in found if f.curve is not None], console)


@app.command()
def curves(
    benchmark: str,
    results: ResultsFolders = RESULTS,
    pair: Annotated[str | None, typer.Option(help="One pair of active loops.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print all methods by number of labels: over the rounds of active loops, or over pairs that differ in their shots.

    Example: limbeck leaderboard curves active --results out/active/records
    """
    _show_curves(benchmark, results, pair, as_json)


def _show_curves(benchmark: str, results: list[Path], pair: str | None, as_json: bool) -> None:
    from limbeck.engine.suite import benchmarks_of
    from limbeck.leaderboard.curves import curves_json, curves_of
    from limbeck.leaderboard.render_curves import render_curves
    from limbeck.leaderboard.store import load_results

    names = benchmarks_of([benchmark]) or []
    found = curves_of(load_results(results, benchmarks=names), names, pair=pair)
    if as_json:
        _print_json([curves_json(one) for one in found])
        return
    console = _console()
    for one in found:
        render_curves(one, console)


@app.command()
def verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECORD|BENCHMARK]...", help="Files, ids or benchmarks; all when none is named."),
    ] = None,
    results: ResultsFolders = RESULTS,
    runs: Runs = None,
    predictions_only: Annotated[
        bool, typer.Option("--predictions-only", help="Only from saved predictions: no weights, no data set; fast.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Hash records, weights and data again, evaluate weights again, and name what does not hold; exit 1 then.

    Where --runs has the predictions that a record names, they are hashed and its figures made again from them too.

    Example: limbeck leaderboard verify bccd --results out/bccd/records --runs out/bccd/runs --predictions-only
    """
    from limbeck.leaderboard.audit import audit, content_hashes, counts, named_files
    from limbeck.leaderboard.verify import verification_json

    files = named_files(results, names)
    evaluate, weights = _evaluation()
    checked = audit(
        files,
        evaluate,
        weights,
        data_hash=content_hashes(),
        results=results,
        runs=runs,
        predictions_only=predictions_only,
    )
    done = []
    with pictures.progress(not as_json) as progress:
        for one in progress.track(checked, total=len(files), description="verify"):
            done.append(one)
            if not as_json and one.verdict not in ("no weights", "no predictions"):
                progress.console.print(f"{one.id}: {one.text}", markup=False, highlight=False)
    if as_json:
        _print_json([verification_json(d) for d in done])
    else:
        typer.echo(", ".join(f"{n} {verdict}" for verdict, n in counts(done).items()))
    if any(d.verdict in ("off", "changed") for d in done):
        raise typer.Exit(1)


@app.command()
def reproduce(ours: Records, theirs: Records, as_json: AsJson = False) -> None:
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


def _evaluation() -> tuple[Any, Any]:
    from limbeck.engine.evaluate import evaluate_weights
    from limbeck.zoo import weight_files

    return evaluate_weights, weight_files()


def _console() -> Any:
    from rich.console import Console

    console = Console()
    # a pipe has no width of its own; 80 columns would cut the tables
    return console if console.is_terminal else Console(width=max(100, console.width))


def _print_json(value: Any) -> None:
    import json

    typer.echo(json.dumps(value, indent=1))
