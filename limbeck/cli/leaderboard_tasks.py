"""The commands of `limbeck leaderboard` that look at several pairs at once: across, pareto, and compare with --task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from limbeck.cli._reading import reading
from limbeck.cli.leaderboard_pictures import RESULTS, ResultsFolders

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Metric = Annotated[str | None, typer.Option(help="Where benchmarks have several primary metrics: this one.")]
Benchmarks = Annotated[list[str] | None, typer.Option("--benchmark", help="Only this one; may be repeated.")]


def across(
    task: str,
    method: Annotated[list[str] | None, typer.Option(help="Compare this one; may be repeated.")] = None,
    metric: Metric = None,
    benchmark: Benchmarks = None,
    results: ResultsFolders = RESULTS,
    svg: Annotated[Path | None, typer.Option(help="Also write the critical-difference diagram.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare methods over all pairs of a task that have each of them: mean gain, mean rank, who is not told apart.

    Example: limbeck leaderboard across image-classification --method KD --method DKD --method DIST
    """
    from limbeck.engine.weights import atomic_path
    from limbeck.leaderboard.across import across, across_json, across_svg
    from limbeck.leaderboard.render_tasks import render_across

    found = across(_tables(task, results, metric, benchmark), method)
    if svg is not None:
        with atomic_path(svg) as temporary:
            temporary.write_text(across_svg(found), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(across_json(found), indent=1))
        return
    render_across(found, _console())
    if svg is not None:
        typer.echo(svg)


def pareto(
    benchmark: str,
    cost: Annotated[str, typer.Option(help="latency, flops or params.")] = "latency",
    pair: Annotated[str | None, typer.Option(help="One pair; all of the benchmark otherwise.")] = None,
    results: ResultsFolders = RESULTS,
    as_json: AsJson = False,
) -> None:
    """Print which rows of a benchmark no other row beats in both the primary metric and the cost.

    Example: limbeck leaderboard pareto digits --cost params
    """
    from limbeck.engine.suite import benchmarks_of
    from limbeck.errors import UnknownName
    from limbeck.leaderboard.pareto import pareto, pareto_json
    from limbeck.leaderboard.render_tasks import render_pareto
    from limbeck.leaderboard.store import load_results
    from limbeck.leaderboard.table import build_tables

    names = benchmarks_of([benchmark]) or []
    with reading() as report:
        loaded = load_results(results, benchmarks=names, report=report)
    found = []
    for name in names:
        groups = loaded.benchmark(name)
        mine = [g for g in groups if pair in (None, g.pair)]
        if not mine:
            raise UnknownName("pair", str(pair), [g.pair for g in groups], f"in {name}")
        found.append(pareto(build_tables(mine), cost))  # type: ignore[arg-type]  # a wrong one is refused
    if as_json:
        typer.echo(json.dumps([pareto_json(f) for f in found], indent=1))
        return
    for one in found:
        render_pareto(one, _console())


def compare_over_pairs(a: str, b: str, task: str, metric: str | None, results: list[Path], as_json: bool) -> None:
    """`compare A B --task TASK`."""
    from limbeck.leaderboard.compare_task import compare_task, task_comparison_json
    from limbeck.leaderboard.render_tasks import render_task_comparison

    found = compare_task(_tables(task, results, metric, None), a, b)
    if as_json:
        typer.echo(json.dumps(task_comparison_json(found), indent=1))
        return
    render_task_comparison(found, _console())


def _tables(task: str, results: list[Path], metric: str | None, benchmarks: Sequence[str] | None) -> Any:
    from limbeck.leaderboard.store import load_results
    from limbeck.leaderboard.tasks import tables_of_task

    with reading() as report:
        loaded = load_results(results, benchmarks=benchmarks, report=report)
    return tables_of_task(loaded, task, metric=metric)


def _console() -> Any:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=max(100, console.width))
