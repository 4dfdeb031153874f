"""`limbeck leaderboard reported` and `compare-reported`: what others published, and beside it what was measured."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from limbeck.cli.leaderboard_pictures import RESULTS, ResultsFolders

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Dataset = Annotated[str | None, typer.Option(help="Only reported figures on this data set.")]


def reported(
    task: Annotated[str | None, typer.Argument(help="Such as image-classification; all when none is named.")] = None,
    method: Annotated[str | None, typer.Option(help="Only this method, as printed or as it is called here.")] = None,
    dataset: Dataset = None,
    as_json: AsJson = False,
) -> None:
    """Print the figures that others published, by task, data set, teacher and student, with source and gain.

    Example: limbeck leaderboard reported image-classification --dataset CIFAR-100 --method DKD
    """
    from limbeck.leaderboard.reported import render_reported, reported_json, select

    rows = select(task, method, dataset)
    if as_json:
        typer.echo(json.dumps(reported_json(rows), indent=1))
    else:
        render_reported(rows, wide_console())


def compare_reported(
    benchmark: str,
    results: ResultsFolders = RESULTS,
    dataset: Dataset = None,
    rows: Annotated[bool, typer.Option("--rows", help="One line a published figure instead of their range.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the reported gain of each method beside the measured one, with the difference; never one ranking.

    Example: limbeck leaderboard compare-reported fashion-mnist --dataset CIFAR-100
    """
    from limbeck.engine.suite import benchmarks_of
    from limbeck.leaderboard.reported.beside import beside, beside_json, render_beside
    from limbeck.leaderboard.store import load_results
    from limbeck.leaderboard.table import build_tables

    tables = build_tables(load_results(results, benchmarks=benchmarks_of([benchmark])))
    found = beside(tables, dataset=dataset)
    if as_json:
        typer.echo(json.dumps(beside_json(found), indent=1))
    else:
        render_beside(found, tables, wide_console(), rows=rows)


def wide_console() -> Any:
    """A console of at least 120 columns where the output is no terminal, so that a pipe gets whole lines."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=max(120, console.width))
