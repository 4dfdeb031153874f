"""`limbeck cache`: what downloaded students take, and making room."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_(json: JsonOption = False) -> None:
    """List the downloaded students: name, source, size, last use.

    Example: limbeck cache list
    """
    from dataclasses import asdict
    from datetime import UTC, datetime

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from limbeck.cli._zoo_predict import print_json
    from limbeck.zoo.store import folder, stored

    lines = stored()
    times = [datetime.fromtimestamp(line.last_used, UTC) for line in lines]
    if json:
        print_json([asdict(line) | {"last_used": when.isoformat()} for line, when in zip(lines, times)])
        return
    if not lines:
        typer.echo(f"no students in {folder()}")
        return
    table = Table(box=None)
    for title in ("name", "kB", "last used", "source"):
        table.add_column(title, overflow="fold", justify="right" if title == "kB" else "left")
    for line, when in zip(lines, times):
        local = when.astimezone().strftime("%Y-%m-%d %H:%M")
        table.add_row(*(Text(cell) for cell in (line.name, f"{line.size / 1e3:,.0f}", local, line.source)))
    console = Console()
    console.width = max(console.width, console.measure(table, options=console.options.update(max_width=400)).maximum)
    console.print(table)
    typer.echo(f"{sum({line.path: line.size for line in lines}.values()) / 1e6:.1f} MB in {folder()}", err=True)


@app.command()
def prune(
    older_than: Annotated[
        float | None, typer.Option("--older-than", min=0, metavar="DAYS", help="Also students not used for so long.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Also all students.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    json: JsonOption = False,
) -> None:
    """Remove unfinished downloads and weights that no student needs, and the students that an option names.

    Example: limbeck cache prune --older-than 30 --dry-run
    """
    from dataclasses import asdict

    from limbeck.cli._zoo_predict import print_json
    from limbeck.zoo.store import prune as clean

    gone = clean(older_than, everything=all_, dry_run=dry_run)
    if json:
        print_json([asdict(one) for one in gone])
        return
    for one in gone:
        typer.echo(f"{one.what}\t{one.size / 1e3:,.0f} kB\t{one.path}")
    said = "would be removed" if dry_run else "removed"
    typer.echo(f"{len(gone)} files, {sum(one.size for one in gone) / 1e6:.1f} MB {said}", err=True)
