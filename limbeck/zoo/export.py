"""Export a student to ONNX, TorchScript or torch.export, and check that the file computes what torch does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from limbeck.engine.registry import DATASETS
from limbeck.engine.weights import atomic_path, sha256_file
from limbeck.errors import ConfigError, DataMissing, UnknownName, UserError
from limbeck.zoo.card import Card, Preprocessing
from limbeck.zoo.export_diffusion import denoiser_form
from limbeck.zoo.export_formats import RUNNERS, WRITERS, Form, Format, flat, largest_difference, require_onnx
from limbeck.zoo.export_lidar import cloud_form
from limbeck.zoo.load import load_student

TOLERANCE = 1e-4  # largest absolute difference of an output
SAMPLES = 64


@dataclass(frozen=True)
class ExportReport:
    """What was written and how it was checked.

    inputs: it was checked with 'real' samples of the student's test split, or 'random' ones where its data is absent.
    what: these samples are called, 'images', 'clouds' or 'noisy images'.
    max_difference: largest absolute difference of an output's value from torch; None without a check.
    outputs: their names, in order.
    """

    name: str
    path: Path
    format: Format
    file_bytes: int
    sha256: str
    inputs: Literal["real", "random"] | None = None
    samples: int = 0
    max_difference: float | None = None
    outputs: tuple[str, ...] = ("logits",)
    what: str = "images"


def export_student(
    name: str, out: str | Path, format: str = "onnx", check: bool = True, *, zoo_dir: str | Path | None = None
) -> ExportReport:
    """Write a student as one file that takes normalised images (B, C, H, W), any B, and gives logits.

    Logits are (B, classes), or (B, classes, H, W) of a segmentation student; H and W are those of the card. ONNX names
    them 'images' and 'logits'. A one-stage detector gives the raw maps of its head, 'cls_logits_0', 'cls_logits_1', …
    (B, A · K, h, w) with the finest first, then 'box_outputs_0', …; boxes and non-maximum suppression are left to the
    user. A PointPillars student takes the pillars of one cloud, any number: 'voxels' (n, M, 4), 'num_points' (n,) and
    'coors' (n, 4), int64, those without points being padding, and gives 'cls_logits', 'box_outputs', 'dir_logits'.
    Of a diffusion model it is one call of the network: 'noisy' (B, C, H, W), 'times' (B,) and 'labels' (B,), int64, to
    'output' (B, C, H, W); the loop of the sampler is left to the user, with what it takes in the file. A torch-export
    file of one takes 63 images at a time at most.
    Preprocessing, classes, palette and what decoding takes travel in the file: ONNX metadata_props, or the extra
    file limbeck.json of the others.

    Args:
        out: the file; written whole or not at all.
        format: 'onnx', 'torchscript' or 'torch-export'.
        check: compare with torch on samples of the test split, images one at a time and many at once.
    Raises: UnknownName; ExtraMissing; ConfigError for a two-stage or a sparse detector; UserError when an output is off
        by more than 1e-4, and nothing is kept.
    """
    if format not in WRITERS:
        raise UnknownName("export format", format, WRITERS)
    if format == "onnx":
        require_onnx(check)
    model = load_student(name, zoo_dir=zoo_dir)
    card: Any = model.card
    if card.generates:
        form = denoiser_form(model, card, metadata(card) | _image_metadata(card.preprocessing))
    else:
        form = cloud_form(model, card, metadata(card)) if card.detects_3d else _image_form(model, card)
    content = WRITERS[format](form)
    difference = largest_difference(form, RUNNERS[format](content)) if check else None
    if difference is not None and not difference <= TOLERANCE:
        raise UserError(
            f"{name} as {format} is off from torch by {difference:.2g}, more than {TOLERANCE:g}; nothing was written: "
            "try another format"
        )
    with atomic_path(out) as temporary:
        temporary.write_bytes(content)
    return ExportReport(
        name=name,
        path=Path(out),
        format=format,  # pyright: ignore[reportArgumentType]  # a key of `WRITERS`
        file_bytes=len(content),
        sha256=sha256_file(out),
        inputs=form.origin if check else None,
        samples=form.count if check else 0,
        max_difference=difference,
        outputs=form.outputs,
        what=form.what,
    )


def _image_form(model: nn.Module, card: Card) -> Form:
    """Checked on all images at once, and on the first few one at a time."""
    names = output_names(model)
    origin, images = check_inputs(card, cast(Any, model).preprocess)
    with torch.inference_mode():
        expected = flat(model(images))
    alone = range(min(4, len(images)))
    return Form(
        model=model,
        inputs=("images",),
        outputs=names,
        example=(images[:2],),
        calls=[(images,), *((images[i : i + 1],) for i in alone)],
        expected=[expected, *([one[i : i + 1] for one in expected] for i in alone)],
        origin=origin,
        count=len(images),
        what="images",
        metadata=metadata(card) | _image_metadata(cast(Any, card.preprocessing)) | _detector_metadata(model, names),
    )


def output_names(model: nn.Module) -> tuple[str, ...]:
    """'logits'; of a detector 'cls_logits_0', … and 'box_outputs_0', …, then 'more_0', … where its head has more.

    Raises: ConfigError for a two-stage detector.
    """
    net: Any = model
    if not net.card.detects:
        return ("logits",)
    if getattr(net, "with_rpn", False):
        raise ConfigError(
            f"{net.card.name} has two stages, and how many regions it looks at depends on the image; "
            "only one-stage detectors can be exported"
        )
    with torch.inference_mode():
        outputs = net(torch.zeros(1, *net.card.preprocessing.input_size, device=next(net.parameters()).device))
    levels = net.bbox_head.prior_generator.num_levels
    kinds = [("cls_logits", levels), ("box_outputs", levels), ("more", len(outputs) - 2 * levels)]
    return tuple(f"{kind}_{place}" for kind, count in kinds for place in range(count))


def _detector_metadata(model: nn.Module, names: Sequence[str]) -> dict[str, str]:
    """What decoding the outputs of a detector takes: the head's kind, strides and, where it has some, anchors."""
    net: Any = model
    if not net.card.detects:
        return {}
    priors = net.bbox_head.prior_generator
    anchors = [level.tolist() for level in getattr(priors, "base_anchors", [])]
    return {
        "limbeck.outputs": json.dumps(names),
        "limbeck.head": type(net.bbox_head).__name__,
        "limbeck.strides": json.dumps([int(x) for x, _ in priors.strides]),
        "limbeck.base_anchors": json.dumps(anchors),
        "limbeck.test_cfg": json.dumps(net.test_cfg),
    }


def metadata(card: Card) -> dict[str, str]:
    """What a file of any student says; lists are JSON."""
    palette = {} if card.palette is None else {"limbeck.palette": json.dumps(card.palette)}
    return palette | {
        "limbeck.name": card.name,
        "limbeck.task": card.task,
        "limbeck.classes": json.dumps(card.classes, ensure_ascii=False),
        "limbeck.weights_sha256": card.sha256,
        "limbeck.licence": card.licence,
        "limbeck.data_licence": card.dataset.licence,
        "limbeck.record": card.record,
    }


def _image_metadata(spec: Preprocessing) -> dict[str, str]:
    return {
        "limbeck.input_size": json.dumps(spec.input_size),
        "limbeck.mean": json.dumps(spec.mean),
        "limbeck.std": json.dumps(spec.std),
        "limbeck.crop_pct": json.dumps(spec.crop_pct),
        "limbeck.interpolation": spec.interpolation,
        "limbeck.pixels": spec.note,
    }


def check_inputs(card: Card, preprocess: Any) -> tuple[Literal["real", "random"], Tensor]:
    """The student's first test images as inputs (B, C, H, W); seeded random ones where its data is absent."""
    try:
        dataset = DATASETS.make(card.dataset.test, where=f"in the card of {card.name}")
    except DataMissing:
        generator = torch.Generator().manual_seed(0)
        shape = (SAMPLES, *cast(Any, card.preprocessing).input_size)
        return "random", preprocess(torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8))
    chosen = range(min(SAMPLES, len(dataset)))
    return "real", preprocess(dataset.__getitems__(chosen)["inputs"])
