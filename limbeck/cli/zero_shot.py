"""`limbeck zero-shot`: how well a vision-language model names a data set's images from its class names alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from limbeck.multimodal.vlm.zero_shot import ZeroShotResult

DEFAULT_MODEL, DEFAULT_TAG = "ViT-B-32", "openai"


def zero_shot(
    dataset: Annotated[str, typer.Argument(help="A data set of the registry: CIFAR10JPEG, Digits, ImageFolder, …")],
    options: Annotated[
        list[str] | None,
        typer.Argument(help="Arguments of the data set as key=value: root=photos.", metavar="KEY=VALUE"),
    ] = None,
    model: Annotated[
        str, typer.Option(help="A model of open_clip, 'hf-hub:ORG/REPO', 'local-dir:FOLDER', 'joined' or 'tiny'.")
    ] = DEFAULT_MODEL,
    tag: Annotated[
        str | None, typer.Option(help=f"open_clip's weights, or a file; of {DEFAULT_MODEL} {DEFAULT_TAG} if not given.")
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(help="A prompt with '{}' for the class, given once or more; or the name of a set's: imagenet."),
    ] = None,
    names: Annotated[
        Path | None, typer.Option(help="Class names in place of the data set's: a JSON list, or one a line.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="Take the first images only.")] = None,
    size: Annotated[int | None, typer.Option(min=32, help="Pixels a side that 'joined' is fed; default 160.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 64,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="Bound torch's threads.")] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Print a line for every class.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Classify a data set's images by their class names alone, and say how many were right.

    Example: limbeck zero-shot CIFAR10JPEG --model joined --limit 500 --per-class

    Example: limbeck zero-shot ImageFolder root=photos --model ViT-B-32 --tag openai --template "a photo of a {}."
    """
    from json import dumps

    from rich.console import Console

    from limbeck.cli._progress import run_progress
    from limbeck.engine.cost import set_threads
    from limbeck.engine.output import pick_device
    from limbeck.multimodal.vlm.zero_shot import (
        build_teacher,
        class_names,
        evaluate_zero_shot,
        open_split,
        teacher_config,
    )

    set_threads(threads)
    if tag is None and model == DEFAULT_MODEL:
        tag = DEFAULT_TAG
    images = open_split(dataset, split, options or (), limit)
    classes = class_names(images, names)
    config = teacher_config(model, tag, classes, template or (), size)
    teacher = build_teacher(config, pick_device(device))
    progress, report = run_progress(Console(stderr=True), f"zero-shot {model}")
    with progress:
        found = evaluate_zero_shot(teacher, images, classes, config=config, batch_size=batch_size, report=report)
    if json:
        typer.echo(dumps(found.to_json(), indent=1, ensure_ascii=False))
        return
    console = Console()
    if per_class:
        _show_classes(found, console)
    chance = 100.0 / len(classes)
    typer.echo(
        f"top-1 {found.top1:.2f} % [{found.low:.2f}, {found.high:.2f}] on {found.images:,} images of {found.dataset} "
        f"{found.split}, {len(classes)} classes (chance {chance:.2f} %); 95 % interval by Wilson over images"
    )


def _show_classes(found: ZeroShotResult, console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("class", "images", "right", "%", box=None)
    table.columns[0].overflow = "fold"
    for column in table.columns[1:]:
        column.justify = "right"
    for one in found.classes:
        share = "–" if one.accuracy is None else f"{one.accuracy:.1f}"
        table.add_row(escape(one.name), f"{one.images:,}", f"{one.correct:,}", share)
    console.print(table)
