"""`limbeck train` and `limbeck doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[str, typer.Argument(help="A config: 'vision/digits' or a .py file.")],
    method: Annotated[
        str, typer.Option("--method", "-m", help="'teacher', 'plain' or a method of the config.")
    ] = "plain",
    seed: Annotated[int, typer.Option(help="Decides initial weights and the order of samples.")] = 0,
    teacher: Annotated[
        str | None, typer.Option(help="Teacher weights: a file, zoo://NAME or run://ID; default: the run below --out.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of runs and records.")] = Path("out/train"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    launcher: Annotated[str, typer.Option(help="none, pytorch (under torchrun) or slurm.")] = "none",
    threads: Annotated[int | None, typer.Option(min=1, help="Bound torch's threads.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew instead of going on from the last epoch.")] = False,
    predictions: Annotated[
        bool, typer.Option("--predictions/--no-predictions", help="Save those on the test split beside the student.")
    ] = True,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override: recipe.epochs=3; repeatable.")] = None,
) -> None:
    """Train one member, or distil with one method, and write its record.

    Example: limbeck train vision/digits --method teacher && limbeck train vision/digits --method KD
    """
    from rich.console import Console

    from limbeck.cli._progress import run_progress
    from limbeck.engine.config import load_pair
    from limbeck.engine.output import pick_device
    from limbeck.engine.run import RunOptions, execute
    from limbeck.engine.single import single_run

    console = Console(stderr=True)
    run = single_run(load_pair(config, set_), method, seed, out, teacher)
    progress, report = run_progress(console, run.id)
    options = RunOptions(
        out=out / "runs",
        records=out / "records",
        cache=out / "cache",
        device=pick_device(device),
        launcher=launcher,
        threads=threads,
        resume=not fresh,
        predictions=predictions,
        progress=report,
    )
    with progress:
        record = execute(run, options)
    if record is not None:
        values = ", ".join(f"{k} {v:.4g}" for k, v in record.metrics.items())
        typer.echo(f"{record.id}: {values}\nrecord  {out / 'records' / record.id}.json")


def doctor() -> None:
    """Say what is installed, which ops are in use, and where data is found.

    Example: limbeck doctor
    """
    from rich.console import Console
    from rich.table import Table

    from limbeck.engine.data_sources import located
    from limbeck.engine.doctor import diagnose

    table = Table("what", "state", "detail", box=None)
    for check in diagnose():
        colour = {"ok": "green", "absent": "yellow", "broken": "red"}[check.state]
        table.add_row(check.what, f"[{colour}]{check.state}[/]", check.detail)
    for name, where in located().items():
        state = "[green]ok[/]" if where else "[yellow]absent[/]"
        table.add_row(f"data {name}", state, where or f"limbeck data get {name}")
    Console().print(table)
