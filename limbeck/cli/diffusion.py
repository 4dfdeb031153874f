"""`limbeck diffusion`: published text-to-image models and their distilled students, one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def pairs(json: JsonOption = False) -> None:
    """List the known pairs: what they download, how many steps the student takes, and its licence.

    Example: limbeck diffusion pairs
    """
    from json import dumps

    from rich.console import Console
    from rich.table import Table

    from limbeck.multimodal.diffusion.pipelines.pairs import PAIRS

    if json:
        typer.echo(dumps([pair.model_dump(mode="json") for pair in PAIRS.values()], indent=1, ensure_ascii=False))
        return
    table = Table("name", "student", "kind", "scheduler", "steps", "pixels", "GB", "licence", box=None)
    for pair in PAIRS.values():
        size = "?" if pair.download_gb is None else f"{pair.download_gb:g}"
        scheduler = pair.scheduler.removesuffix("Scheduler")
        numbers = (str(pair.steps), str(pair.image_size), size)
        table.add_row(pair.name, pair.distilled, pair.kind, scheduler, *numbers, pair.licence or "?")
    console = Console()
    wide = console.measure(table, options=console.options.update(max_width=400)).maximum
    console.width = max(console.width, wide)  # a name that is cut cannot be copied
    console.print(table)


@app.command("hand-over")
def hand_over(
    pair: Annotated[str, typer.Argument(help="A pair: see `limbeck diffusion pairs`; or a JSON file of your own.")],
    prompt: Annotated[list[str], typer.Option(help="What to draw; repeatable.")],
    seed: Annotated[list[int] | None, typer.Option(help="Of the noise; repeatable. Default 0.")] = None,
    at: Annotated[int, typer.Option(help="Steps of the student that the base makes instead; 0 is none.")] = 1,
    base_steps: Annotated[
        int | None, typer.Option(min=1, help="Of the base, noise to image; default the student's number.")
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="Of the base; default the pair's.")] = None,
    size: Annotated[int | None, typer.Option(min=8, help="Pixels a side; default the pair's.")] = None,
    same_scheduler: Annotated[
        bool, typer.Option("--same-scheduler", help="The base samples with the student's scheduler.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("out/hand-over"),
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="float32, float16 or bfloat16; default float16 on a GPU, float32 on the CPU.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Download nothing.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Bound torch's threads.")] = None,
    json: JsonOption = False,
) -> None:
    """Let the base model make the first steps and its student the rest; write images, a grid and a strip of the steps.

    The strip is DT-Visualization: what the models believed the image to be at each step.

    Example: limbeck diffusion hand-over sdxl-dmd2 --prompt "a photo of a dog" --seed 0 --seed 1 --at 1 --out dogs
    """
    from rich.console import Console

    from limbeck.cli._progress import run_progress
    from limbeck.engine.cost import set_threads
    from limbeck.engine.output import check_output, pick_device
    from limbeck.multimodal.diffusion.pipelines.loading import load_pair
    from limbeck.multimodal.diffusion.pipelines.pairs import find_pair
    from limbeck.multimodal.diffusion.pipelines.pictures import write_pictures

    known = find_pair(pair)
    check_output(out)
    set_threads(threads)
    loaded = load_pair(
        known,
        dtype=dtype,
        device=pick_device(device),
        same_scheduler=same_scheduler,
        local_files_only=offline,
    )
    options = dict(guidance=guidance, height=size, width=size)
    progress, report = run_progress(Console(stderr=True), f"hand-over {known.name}")
    with progress:
        found = loaded.hand_over(
            prompt,
            seed or [0],
            at=at,
            base_steps=base_steps,
            record=True,
            batch_size=batch_size,
            report=report,
            **{key: value for key, value in options.items() if value is not None},
        )
    facts = write_pictures(found, out)
    if json:
        from json import dumps

        typer.echo(dumps(facts, indent=1, ensure_ascii=False))
        return
    typer.echo(
        f"{len(found.images)} images in {out}, {found.calls} network calls each: {found.base_calls} of the base, "
        f"{found.distilled_calls} of the student\nlook at  {out / 'grid.png'}\nsteps    {out / 'strip.png'}"
    )
