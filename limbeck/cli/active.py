"""`limbeck active`: label a folder of your own images, round by round."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})
Out = Annotated[Path, typer.Option(help="Folder of the session.")]


@app.command("next")
def next_(
    config: Annotated[str | None, typer.Argument(help="A config with a loop; only the first time.")] = None,
    method: Annotated[str, typer.Option("--method", "-m", help="A method of the config.")] = "DHO",
    seed: Annotated[int, typer.Option(help="Decides initial weights and random choices.")] = 0,
    teacher: Annotated[str | None, typer.Option(help="Teacher weights: a file, zoo://NAME or run://ID.")] = None,
    out: Out = Path("out/active"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Bound torch's threads.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override: loop.budget=20; repeatable.")] = None,
) -> None:
    """Train on the labels so far, choose the next images, and write a sheet of them to be labelled.

    Example: limbeck active next my_images.py --out out/mine
    """
    from rich.console import Console

    from limbeck.cli._progress import run_progress
    from limbeck.engine.config import expand, load_pair
    from limbeck.engine.output import pick_device
    from limbeck.engine.run import RunOptions
    from limbeck.multimodal.vlm.interactive import Session

    run = None if config is None else expand(load_pair(config, set_), method, seed, teacher_weights=teacher)
    progress, report = run_progress(Console(stderr=True), "active learning")
    options = RunOptions(
        out=out / "runs",
        records=out / "records",
        cache=out / "cache",
        device=pick_device(device),
        threads=threads,
        progress=report,
    )
    with progress:
        step = Session.open(out, options, run).next()
    if step.record is not None:
        typer.echo(f"student: {step.record.primary_metric} {step.record.value:.2f} on the test split")
    if step.sheet is None:
        typer.echo(f"all {step.number} rounds are done; the student is in {out}")
        return
    said = "labels are still wanted" if step.waiting else "label these images"
    typer.echo(f"round {step.number}: {said}\nlook at  {step.sheet.page}\nfill in  {step.sheet.labels}")
    for group in step.sheet.duplicates:
        typer.echo(f"the same image: ids {', '.join(map(str, group))}")
    typer.echo(f"then run: limbeck active submit --out {out}")


@app.command()
def submit(
    labels: Annotated[Path | None, typer.Argument(help="The filled CSV; default: the sheet's own.")] = None,
    out: Out = Path("out/active"),
) -> None:
    """Read the labels of the sheet back.

    Example: limbeck active submit --out out/mine
    """
    from limbeck.engine.run import RunOptions
    from limbeck.multimodal.vlm.interactive import Session

    number, known = Session.open(out, RunOptions(out=out / "runs")).submit(labels)
    typer.echo(f"round {number}: {known} labels are known\nthen run: limbeck active next --out {out}")
