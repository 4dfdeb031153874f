"""`limbeck leaderboard submit`: puts records where a pull request wants them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def submit(
    records: Annotated[list[Path], typer.Argument(metavar="RECORD...", help="JSON files of runs, or their folder.")],
    weights: Annotated[Path | None, typer.Option(help="student.safetensors of one of the runs, to be checked.")] = None,
    to: Annotated[Path, typer.Option(help="Checkout of Limbeck that the pull request is made from.")] = Path("."),
    config: Annotated[str | None, typer.Option(help="Config of a benchmark of your own, by name or path.")] = None,
) -> None:
    """Check records and write the files of a pull request: one file a run, below results/, none replaced.

    Example: limbeck leaderboard submit out/demo/records/digits --to limbeck
    """
    from limbeck.leaderboard.submit import record_files, submit
    from limbeck.zoo.terms import DATA_TERMS

    licences = {name: terms.licence for name, terms in DATA_TERMS.items()}
    found = submit(record_files(records), checkout=to, weights=weights, config=config, licences=licences)
    for line in found.lines:
        typer.echo(line)
