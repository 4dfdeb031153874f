"""limbeck data: list and get data sets."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="List and get data sets.")


@app.command("list")
def list_() -> None:
    """List the data sets, and where each was found.

    Example: limbeck data list
    """
    from limbeck.engine.data_sources import available, located

    places = located()
    for name, text in available().items():
        typer.echo(f"{name}  {text}\n    {places[name] or f'not here; limbeck data get {name}'}")


@app.command()
def get(
    name: Annotated[str, typer.Argument(help="Name of the data set, as 'limbeck data list' shows it.")],
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Download a data set into the cache folder and check it, or say where to put one that cannot be downloaded.

    Example: limbeck data get fashion-mnist
    """
    from limbeck.engine.data_sources import get

    folder = get(name, progress=not quiet)
    typer.echo(f"{name} needs no files" if folder is None else str(folder))
