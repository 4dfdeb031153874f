"""What `limbeck zoo predict` does for students of each kind: pictures, files of boxes, grids, and lines of text."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from limbeck.errors import ConfigError

if TYPE_CHECKING:
    from limbeck.zoo.card import Card
    from limbeck.zoo.predictor import Predictor

BAR_FROM = 64  # images; fewer are done before a bar is read


def predict_maps(predictor: Predictor, paths: list[Path], out: Path, top: int, *, json: bool) -> None:
    """Write the pictures of a segmentation, and print a line, or a JSON object, for each image."""
    from limbeck.engine.output import check_output
    from limbeck.zoo.overlay import percent, plan_outputs, write_pictures

    plan = plan_outputs(paths, out)
    check_output(out)
    stems = (stem for _, stem in plan)
    rows = [write_pictures(found, stem) for found, stem in zip(with_bar(predictor, [file for file, _ in plan]), stems)]
    if json:
        print_json(rows)
        return
    for row in rows:
        shares = list(row["shares"].items())[:top]
        typer.echo("\t".join([row["source"], *(f"{label} {percent(share)}" for label, share in shares)]))
    typer.echo(f"{len(rows)} overlays and label maps in {out}", err=True)


def check_no_input(card: Card, paths: list[Path] | None, top_k: int | None, score: float | None, invert: bool) -> None:
    """Raises: ConfigError for what a student that reads no images cannot use."""
    options = (("--top-k", top_k), ("--score", score), ("--invert", invert or None))
    given = [name for name, value in options if value is not None]
    if paths or given:
        what = f"{paths[0]} is" if paths else f"{given[0]} is"
        raise ConfigError(f"{card.name} makes images and reads none, so {what} of no use; leave it out")


def generate(
    name: str, out: Path, classes: str | None, count: int | None, seed: int | None, device: str, *, json: bool
) -> None:
    """Write what a diffusion model makes, and print a line, or a JSON object."""
    from limbeck.zoo.generation import COUNT, write_grid

    made = write_grid(name, out, classes=classes, count=count or COUNT, seed=seed or 0, device=device)
    if json:
        print_json(made)
        return
    calls = f"{made['calls']} network call{'s' if made['calls'] != 1 else ''} each"
    typer.echo(f"{out}: {made['count']} images of each of {', '.join(made['classes'])}, seed {made['seed']}, {calls}")


def check_options(card: Card, top_k: int | None, score: float | None) -> None:
    """Raises: ConfigError for an option that the student's task has no use for."""
    finds_boxes = card.detects or card.detects_3d
    if finds_boxes and top_k is not None:
        raise ConfigError(f"--top-k is of classes, and {card.name} is a detector; leave out boxes by --score instead")
    if not finds_boxes and score is not None:
        raise ConfigError(f"--score is of a detector's boxes, and {card.name} is of {card.task}; leave it out")


def predict_boxes(predictor: Predictor, paths: list[Path], out: Path, *, json: bool) -> None:
    """Write what a detector found in each image or cloud, and print a line, or a JSON object, for each."""
    from limbeck.engine.output import check_output
    from limbeck.zoo.boxes import BOXES, write_boxes
    from limbeck.zoo.clouds import cloud_files
    from limbeck.zoo.overlay import OVERLAY, plan_outputs
    from limbeck.zoo.scene import ABOVE, PAGE, write_scene

    if clouds := predictor.card.detects_3d:
        plan = plan_outputs(paths, out, (ABOVE, BOXES, PAGE), cloud_files)
    else:
        plan = plan_outputs(paths, out, (OVERLAY, BOXES))
    check_output(out)
    rows = []
    for found, (_, stem) in zip(with_bar(predictor, [file for file, _ in plan]), plan):
        rows.append(write_scene(found, stem) if clouds else write_boxes(found, stem))
        if not json:
            counts = [f"{label} {count}" for label, count in found.counts.items()]
            typer.echo("\t".join([str(found.source), *(counts or ["nothing found"])]))
    if json:
        print_json(rows)
    else:
        what = "pictures, JSON files of boxes and 3D pages" if clouds else "pictures and JSON files of boxes"
        typer.echo(f"{len(rows)} {what} in {out}", err=True)


def with_bar(predictor: Predictor, files: list[Path]) -> Iterable[Any]:
    """Predictions one by one, with a bar on a terminal where they are many."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    shown = len(files) >= BAR_FROM and console.is_terminal
    return track(predictor.stream(files), predictor.card.name, len(files), console=console, disable=not shown)


def print_json(value: Any) -> None:
    """Print JSON for other programs."""
    from json import dumps

    typer.echo(dumps(value, indent=1, ensure_ascii=False))
