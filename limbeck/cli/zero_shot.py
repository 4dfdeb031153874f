"""`limbeck zero-shot`: how well a vision-language model names images from class names, or few labels beside them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from limbeck.multimodal.vlm.classifier import AdaptedClassifier
    from limbeck.multimodal.vlm.zero_shot import ZeroShotResult

DEFAULT_SHOTS = 16
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
    adapt: Annotated[
        str | None, typer.Option(help="Fit the model to few labelled images of train first: tip-adapter-f or clap.")
    ] = None,
    shots: Annotated[
        int | None, typer.Option(min=1, help=f"With --adapt: labelled images a class; default {DEFAULT_SHOTS}.")
    ] = None,
    seed: Annotated[int, typer.Option(help="With --adapt: decides the labelled images, views and batches.")] = 0,
    save: Annotated[
        Path | None, typer.Option(help="With --adapt: write the fitted weights, for `limbeck train --teacher`.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Bound torch's threads.")] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Print a line for every class.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Classify a data set's images by their class names alone, and say how many were right.

    With --adapt also after fitting to a few labelled images of the split train; augment and views of KEY=VALUE are then
    theirs alone. Tip-Adapter-F chooses its epoch and two factors by all labels of the split val; CLAP reads none.

    Example: limbeck zero-shot CIFAR10JPEG --model joined --limit 500 --per-class

    Example: limbeck zero-shot ImageFolder root=photos --model ViT-B-32 --tag openai --template "a photo of a {}."

    Example: limbeck zero-shot DTD10 --model joined --adapt tip-adapter-f --shots 4 --save adapted.safetensors
    """
    from rich.console import Console

    from limbeck.cli._progress import run_progress
    from limbeck.engine.cost import set_threads
    from limbeck.engine.output import pick_device
    from limbeck.errors import ConfigError
    from limbeck.multimodal.vlm.few_shot import adapted_teacher, check_adaptation, evaluation_options
    from limbeck.multimodal.vlm.zero_shot import (
        build_teacher,
        class_names,
        counted,
        image_features,
        open_split,
        teacher_config,
    )

    set_threads(threads)
    if adapt is None and (shots is not None or save is not None):
        raise ConfigError("--shots and --save are of a fitted model; add --adapt tip-adapter-f or --adapt clap")
    if adapt is not None:
        check_adaptation(adapt, split)
    if tag is None and model == DEFAULT_MODEL:
        tag = DEFAULT_TAG
    given = options or []
    images = open_split(dataset, split, given if adapt is None else evaluation_options(given), limit)
    classes = class_names(images, names)
    config = teacher_config(model, tag, classes, template or (), size)
    teacher = build_teacher(config, pick_device(device))
    progress, report = run_progress(Console(stderr=True), f"zero-shot {model}")
    fitted = None
    with progress:
        if adapt is not None:
            of = dict(shots=shots or DEFAULT_SHOTS, seed=seed)
            fitted, fitted_config = adapted_teacher(teacher, config, adapt, dataset, given, report=report, **of)
        features, labels = image_features(teacher, images, batch_size=batch_size, report=report)
    found = counted(teacher, features, labels, images, classes, config=config)
    if fitted is None:
        _say(found, per_class, json)
        return
    before, found = found, counted(fitted, features, labels, images, classes, config=fitted_config)
    said = dict(zero_shot=_figures(before), **_fitted(fitted, seed))
    if save is not None:
        said["sha256"] = _save(fitted, save)
    if not json:
        typer.echo(f"zero-shot: {_line(before)}")
        typer.echo(f"{adapt}, fitted to {said['labelled_images']:,} labelled images of train:")
    _say(found, per_class, json, said)
    if save is not None and not json:
        typer.echo(f"weights  {save}")


def _say(found: ZeroShotResult, per_class: bool, json: bool, more: dict[str, object] | None = None) -> None:
    from json import dumps

    from rich.console import Console

    if json:
        typer.echo(dumps(found.to_json() | (more or {}), indent=1, ensure_ascii=False))
        return
    if per_class:
        _show_classes(found, Console())
    typer.echo(_line(found))


def _line(found: ZeroShotResult) -> str:
    classes = len(found.classes)
    return (
        f"top-1 {found.top1:.2f} % [{found.low:.2f}, {found.high:.2f}] on {found.images:,} images of {found.dataset} "
        f"{found.split}, {classes} classes (chance {100.0 / classes:.2f} %); 95 % interval by Wilson over images"
    )


def _figures(found: ZeroShotResult) -> dict[str, float]:
    return dict(correct=found.correct, top1=found.top1, low=found.low, high=found.high)


def _fitted(model: AdaptedClassifier, seed: int) -> dict[str, object]:
    """What a fitted teacher was made of; the two factors that Tip-Adapter-F has chosen."""
    found: dict[str, object] = dict(seed=seed, labelled_images=len(model.support_ids))
    return found | {name: float(getattr(model, name)) for name in ("alpha", "beta") if hasattr(model, name)}


def _save(model: AdaptedClassifier, path: Path) -> str:
    from limbeck.engine.weights import save_weights

    return save_weights(path, model.state_dict(), metadata={})


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
