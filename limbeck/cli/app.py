"""The root command and its groups."""

from __future__ import annotations

from typing import Annotated

import typer

from limbeck import __version__
from limbeck.cli import active, bench, cache, data, diffusion, leaderboard, run, search, zero_shot, zoo

app = typer.Typer(
    name="limbeck",
    help="Distil, benchmark and compare: small models that behave like big ones.",
    epilog="Example: limbeck bench run demo && limbeck leaderboard show --results out/demo/records",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(bench.app, name="bench", help="Run benchmark suites, only what is missing.")
app.add_typer(leaderboard.app, name="leaderboard", help="Tables, pages, comparisons and checks from result records.")
app.add_typer(zoo.app, name="zoo", help="Find, use and export distilled students.")
app.add_typer(cache.app, name="cache", help="Downloaded students: list them, make room.")
app.add_typer(data.app, name="data", help="Get data sets and say where they are.")
app.add_typer(active.app, name="active", help="Label your own images round by round: which ones next, and a student.")
app.add_typer(diffusion.app, name="diffusion", help="Published text-to-image models and their distilled students.")
app.command("train")(run.train)
app.command("demo")(bench.demo)
app.command("reproduce")(bench.reproduce)
app.command("search")(search.search)
app.command("zero-shot")(zero_shot.zero_shot)
app.command("doctor")(run.doctor)


def _version(show: bool) -> None:
    if show:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Distil, benchmark and compare: small models that behave like big ones."""
