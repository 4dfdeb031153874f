"""`limbeck zoo`: find, use, export and publish students."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limbeck.cli import zoo_share
from limbeck.cli._zoo_predict import (
    check_no_input,
    check_options,
    generate,
    predict_boxes,
    predict_maps,
    print_json,
    with_bar,
)
from limbeck.cli.zoo_get import add_commands, read_stdin
from limbeck.errors import ConfigError

if TYPE_CHECKING:
    from limbeck.zoo.card import Card

app = typer.Typer(no_args_is_help=True)

NameArgument = Annotated[
    str, typer.Argument(help="A student: see `limbeck zoo list`; or hf://owner/name, https://…/NAME.json, a path.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_(
    task: Annotated[str | None, typer.Option(help="Only this task: image-classification, …")] = None,
    method: Annotated[str | None, typer.Option(help="Only this method: KD, DIST, plain, teacher, …")] = None,
    max_params: Annotated[int | None, typer.Option(min=0, help="Only with at most so many parameters.")] = None,
    min_metric: Annotated[
        str | None, typer.Option(help="Only with a primary metric of at least this: 90; or of another one: ece=0.1.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """List the students, with the figures of their records.

    Example: limbeck zoo list --task image-classification --method KD --max-params 100000 --min-metric 90
    """
    from limbeck.zoo import list_students

    cards = list_students(task, method, max_params=max_params, min_metric=min_metric)
    if json:
        print_json([card.model_dump(mode="json") for card in cards])
        return
    if not cards:
        known = sorted({card.method for card in list_students()})
        typer.echo(f"no such students; the zoo has methods: {', '.join(known) or 'none yet'}")
        return
    typer.echo(_columns(cards))


def _columns(cards: list[Card]) -> str:
    """The list as text. Padded here, since rich's table takes a third of the command's time for it.

    A narrow terminal wraps the lines; no figure is cut.
    """
    several = len({card.task for card in cards}) > 1
    rows = [("name", "method", "result", "params", "MFLOPs", "kB", *(["task"] if several else []))]
    for card in cards:
        flops = "" if card.flops is None else f"{card.flops / 1e6:.2f}"
        size, result = f"{card.file_bytes / 1e3:.0f}", f"{card.primary_metric} {card.value:.2f}"
        task = [card.task] if several else []
        rows.append((card.name, card.method, result, f"{card.parameters:,}", flops, size, *task))
    widths = [max(map(len, column)) for column in zip(*rows)]
    pads = [str.rjust if title in ("params", "MFLOPs", "kB") else str.ljust for title in rows[0]]
    return "\n".join("  ".join(pad(c, w) for pad, c, w in zip(pads, row, widths)).rstrip() for row in rows)


@app.command()
def info(name: NameArgument, json: JsonOption = False) -> None:
    """Say what a student is: figures, record, preprocessing, classes, licences and limits.

    Example: limbeck zoo info resnet8w4.digits_kd
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from limbeck.zoo import find

    card = find(name)
    if json:
        print_json(card.model_dump(mode="json"))
        return
    table = Table(box=None, show_header=False)
    for key, value in _facts(card).items():
        table.add_row(f"[bold]{key}[/]", Text(value))
    Console().print(table)


@app.command()
def predict(
    name: NameArgument,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Image files, of a LiDAR detector .bin files of clouds, and folders of them; - reads paths from "
            "standard input, one a line."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write all predictions to this JSON file; of a segmentation and a detector, the folder that gets "
            "pictures and pages (default out/predict); of a diffusion model, the PNG file (default in out/predict)."
        ),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Classes listed for each image; default 1, of a segmentation 3.")
    ] = None,
    score: Annotated[
        float | None, typer.Option(min=0, max=1, help="Least score of a detector's boxes; default 0.3.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time; 4 clouds at most.")] = 32,
    invert: Annotated[bool, typer.Option("--invert", help="Swap black and white first: dark ink on paper.")] = False,
    classes: Annotated[
        str | None, typer.Option(help="Of a diffusion model: what it makes, by name or number: 0,1,2; default all.")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Of a diffusion model: images of each class; 8.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of a diffusion model: of its noise; default 0.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
    json: JsonOption = False,
) -> None:
    """Say what a student sees in images; a segmentation writes an overlay and a label map of each, a detector a
    picture with labelled boxes and a JSON file of them.

    Both get the whole image, resized; a map is brought back to the image's size by nearest, and boxes to its pixels.
    A LiDAR detector reads clouds, .bin files of 4 float32 a point as KITTI's, and writes a picture from above, a JSON
    file of the boxes in metres, and a page that shows cloud and boxes in 3D. A diffusion model reads nothing and makes
    a grid of images, a row a class.

    Example: limbeck zoo predict resnet8w4.digits_kd seven.png scans/ --out predictions.json

    Example: find scans -name '*.png' | limbeck zoo predict resnet8w4.digits_kd - --json

    Example: limbeck zoo predict pointpillars16.lidar-scenes_pointdistiller 000008.bin --score 0.4

    Example: limbeck zoo predict unet32-64_1step.diffusion-digits_pd --classes 0,1,2 --count 16 --out digits.png
    """
    from limbeck.engine.weights import write_json
    from limbeck.zoo import Predictor, find
    from limbeck.zoo.images import image_files
    from limbeck.zoo.predictor import SCORE

    card, paths = find(name), read_stdin(paths)
    if card.generates:
        check_no_input(card, paths, top_k, score, invert)
        generate(name, out or Path("out/predict") / f"{name}.png", classes, count, seed, device, json=json)
        return
    if (classes, count, seed) != (None, None, None):
        raise ConfigError(f"--classes, --count and --seed are of diffusion models, and {name} is of {card.task}")
    if not paths:
        raise ConfigError(f"{name} is of {card.task}: name files or folders for it to look at")
    predictor = Predictor(
        name, device, batch_size, top_k=top_k or 1, invert=invert, score=SCORE if score is None else score
    )
    check_options(predictor.card, top_k, score)
    if predictor.card.detects or predictor.card.detects_3d:
        predict_boxes(predictor, paths, out or Path("out/predict"), json=json)
        return
    if predictor.card.segments:
        predict_maps(predictor, paths, out or Path("out/predict"), top_k or 3, json=json)
        return
    files = [file for path in paths for file in (image_files(path) if path.is_dir() else [path])]
    found = list(with_bar(predictor, files))
    if out is not None:
        write_json(out, {"student": name, "predictions": [p.to_dict() for p in found]})
    if json:
        print_json([p.to_dict() for p in found])
    elif out is not None:
        typer.echo(f"{len(found)} predictions in {out}")
    else:
        for p in found:
            typer.echo("\t".join([str(p.source), *(f"{label} {chance:.4f}" for label, chance in p.top)]))


@app.command()
def export(
    name: NameArgument,
    out: Annotated[Path, typer.Option(help="The file to write.")],
    format: Annotated[str, typer.Option(help="onnx, torchscript or torch-export.")] = "onnx",
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Compare with torch on test images or clouds.")
    ] = True,
) -> None:
    """Export a student, with its preprocessing and classes inside, and check the file against torch.

    Of a PointPillars student the part behind the voxels is exported: pillars of one cloud in, the head's maps out; of a
    diffusion model one call of its network.

    Example: limbeck zoo export resnet8w4.digits_kd --out digits.onnx
    """
    from limbeck.zoo import export_student

    report = export_student(name, out, format, check)
    typer.echo(f"{report.path}: {report.format}, {report.file_bytes / 1e3:.0f} kB, sha256 {report.sha256}")
    if report.max_difference is not None:
        what = f"{report.samples} {report.inputs} {report.what}"
        typer.echo(f"largest difference from torch on {what}: {report.max_difference:.1e}")
    if len(report.outputs) > 1:
        typer.echo(f"outputs: {', '.join(report.outputs)}")


@app.command()
def add(
    record: Annotated[Path, typer.Argument(help="The record of the run, a JSON file.")],
    weights: Annotated[Path, typer.Argument(help="The student.safetensors of the run.")],
    name: Annotated[str | None, typer.Option(help="ARCHITECTURE.TAG; made from the record where not given.")] = None,
    zoo: Annotated[
        Path | None, typer.Option(help="Zoo folder; default $LIMBECK_ZOO, or the one in the package.")
    ] = None,
) -> None:
    """Put a run's student into the zoo (for maintainers).

    Example: limbeck zoo add RUN/kd/seed0.json RUN/student.safetensors
    """
    from limbeck.zoo import add_student

    card = add_student(record, weights, name, zoo)
    typer.echo(f"{card.name}: {card.primary_metric} {card.value:.2f}, {card.file_bytes / 1e3:.0f} kB, {card.file}")


add_commands(app)


def _facts(card: Card) -> dict[str, str]:
    numbers = {name: f"{value:.4g}" for name, value in card.metrics.items()}
    return {
        "name": card.name,
        "task": card.task,
        "method": f"{card.method}, seed {card.seed}",
        "teacher": card.teacher or "none",
        "data": f"{card.dataset.name}: {card.dataset.source}; {card.dataset.licence}",
        "results": ", ".join(f"{name} {value}" for name, value in numbers.items()),
        "record": card.record,
        "parameters": f"{card.parameters:,}",
        "FLOPs": "not counted" if card.flops is None else f"{card.flops:,}",
        **_latency(card),
        "input": _input(card),
        **_sampler(card),
        "classes": ", ".join(card.classes if card.palette is None else map(_coloured, card.classes, card.palette)),
        "file": f"{card.file}, {card.file_bytes:,} bytes",
        "sha256": card.sha256,
        "licence": card.licence,
        "use": card.intended_use,
        "limits": card.limits,
        "code": card.code_version,
    }


def _latency(card: Card) -> dict[str, str]:
    if card.latency_ms is None:
        return {}
    threads = f"{card.latency_threads} thread{'s' if card.latency_threads != 1 else ''}"
    return {"latency": f"{card.latency_ms:.3g} ms a sample (median) on {card.latency_device}, {threads}"}


def _sampler(card: Card) -> dict[str, str]:
    if (one := card.sampler) is None:
        return {}
    said = f"{one.kind}, {one.steps} step{'s' if one.steps != 1 else ''}, guidance {one.guidance:g}"
    return {"sampler": f"{said}, {one.calls} network call{'s' if one.calls != 1 else ''} an image"}


def _input(card: Card) -> str:
    if (image := card.preprocessing) is not None:
        channels, height, width = image.input_size
        return f"{channels} × {height} × {width}, mean {list(image.mean)}, std {list(image.std)}; {image.note}"
    if (spec := card.voxels) is None:
        return ""
    low, high = spec.point_cloud_range[:3], spec.point_cloud_range[3:]
    spans = ", ".join(f"{axis} {a:g} to {b:g}" for axis, a, b in zip("xyz", low, high))
    size = " × ".join(f"{side:g}" for side in spec.voxel_size)
    return f"points of x, y, z, reflectance in {spans} m, voxels of {size} m; {spec.note}"


def _coloured(name: str, colour: tuple[int, int, int]) -> str:
    return f"{name} #{bytes(colour).hex()}"


app.command()(zoo_share.push)
app.command()(zoo_share.metafile)
app.command()(zoo_share.public)
