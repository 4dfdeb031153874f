"""Export a student to ONNX, TorchScript or torch.export, and check that the file computes what torch does."""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.engine.registry import DATASETS, require
from limbeck.engine.weights import atomic_path, sha256_file
from limbeck.errors import ConfigError, DataMissing, UnknownName, UserError
from limbeck.zoo.card import Card
from limbeck.zoo.load import load_student

Format = Literal["onnx", "torchscript", "torch-export"]
Runner = Callable[[Tensor], Tensor | Sequence[Tensor]]
FORMATS: tuple[Format, ...] = ("onnx", "torchscript", "torch-export")
TOLERANCE = 1e-4  # largest absolute difference of an output
SAMPLES = 64


@dataclass(frozen=True)
class ExportReport:
    """What was written and how it was checked.

    inputs: what it was checked with: 'real' images of the student's test split, 'random' ones where its data is absent.
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


def export_student(
    name: str, out: str | Path, format: str = "onnx", check: bool = True, *, zoo_dir: str | Path | None = None
) -> ExportReport:
    """Write a student as one file that takes normalised images (B, C, H, W), any B, and gives logits.

    Logits are (B, classes), or (B, classes, H, W) of a segmentation student; H and W are those of the card. ONNX names
    them 'images' and 'logits'. A one-stage detector gives the raw maps of its head, 'cls_logits_0', 'cls_logits_1', …
    (B, A · K, h, w) with the finest first, then 'box_outputs_0', …; boxes and non-maximum suppression are left to the
    user. Preprocessing, classes, palette and the outputs' names travel in the file: ONNX metadata_props, or the extra
    file limbeck.json of the others.

    Args:
        out: the file; written whole or not at all.
        format: 'onnx', 'torchscript' or 'torch-export'.
        check: compare with torch on images of the test split, one at a time and many at once.
    Raises: UnknownName; ExtraMissing; ConfigError for a two-stage detector; UserError when an output is off by more
        than 1e-4, and nothing is kept.
    """
    writers: dict[str, Callable[[nn.Module, Tensor, dict[str, str], Sequence[str]], bytes]] = {
        "onnx": _onnx,
        "torchscript": _torchscript,
        "torch-export": _torch_export,
    }
    if format not in writers:
        raise UnknownName("export format", format, FORMATS)
    if format == "onnx":
        _require_onnx(check)
    model = load_student(name, zoo_dir=zoo_dir)
    card: Any = model.card
    names = output_names(model)
    kind, inputs = check_inputs(card, model.preprocess)
    content = writers[format](model, inputs[:2], metadata(card) | _detector_metadata(model, names), names)
    difference = largest_difference(model, RUNNERS[format](content), inputs) if check else None
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
        format=format,  # pyright: ignore[reportArgumentType]  # a key of `writers`
        file_bytes=len(content),
        sha256=sha256_file(out),
        inputs=kind if check else None,
        samples=len(inputs) if check else 0,
        max_difference=difference,
        outputs=names,
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
    """What a file needs to be used without this package; lists are JSON."""
    spec = card.preprocessing
    palette = {} if card.palette is None else {"limbeck.palette": json.dumps(card.palette)}
    return palette | {
        "limbeck.name": card.name,
        "limbeck.task": card.task,
        "limbeck.input_size": json.dumps(spec.input_size),
        "limbeck.mean": json.dumps(spec.mean),
        "limbeck.std": json.dumps(spec.std),
        "limbeck.crop_pct": json.dumps(spec.crop_pct),
        "limbeck.interpolation": spec.interpolation,
        "limbeck.pixels": spec.note,
        "limbeck.classes": json.dumps(card.classes, ensure_ascii=False),
        "limbeck.weights_sha256": card.sha256,
        "limbeck.licence": card.licence,
        "limbeck.data_licence": card.dataset.licence,
        "limbeck.record": card.record,
    }


def check_inputs(card: Card, preprocess: Any) -> tuple[Literal["real", "random"], Tensor]:
    """The student's first test images as inputs (B, C, H, W); seeded random ones where its data is absent."""
    try:
        dataset = DATASETS.make(card.dataset.test, where=f"in the card of {card.name}")
    except DataMissing:
        generator = torch.Generator().manual_seed(0)
        shape = (SAMPLES, *card.preprocessing.input_size)
        return "random", preprocess(torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8))
    chosen = range(min(SAMPLES, len(dataset)))
    return "real", preprocess(dataset.__getitems__(chosen)["inputs"])


def largest_difference(model: nn.Module, run: Runner, inputs: Tensor) -> float:
    """Largest absolute difference of any output over all images at once, and over the first few one at a time.

    Infinite where the outputs are of another number or other shapes.
    """
    with torch.inference_mode():
        expected = _flat(model(inputs))
        alone = [_flat(run(one[None])) for one in inputs[:4]]
        found = [_flat(run(inputs)), [torch.cat(parts) for parts in zip(*alone)]]
    pairs = [(f, e[: len(f)]) for outputs in found for f, e in zip(outputs, expected)]
    if any(len(outputs) != len(expected) for outputs in found) or any(f.shape != e.shape for f, e in pairs):
        return math.inf
    worst = torch.stack([(f - e).abs().max() for f, e in pairs])
    return float(worst.max())  # NaN where there is one


def _flat(outputs: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _require_onnx(check: bool) -> None:
    for module in ("onnx", "onnxscript", *(("onnxruntime",) if check else ())):
        require(module, "export to ONNX", "export")


def _onnx(model: nn.Module, example: Tensor, props: dict[str, str], names: Sequence[str]) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter deprecates its own insides
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            input_names=["images"],
            output_names=list(names),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    if program is None:
        raise UserError("torch's ONNX exporter gave nothing; try another format")
    proto = program.model_proto
    require("onnx", "export to ONNX", "export").helper.set_model_props(proto, props)
    return proto.SerializeToString()


def _torchscript(model: nn.Module, example: Tensor, props: dict[str, str], names: Sequence[str]) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript; runtimes that want it remain
        scripted = torch.jit.trace(model, example)
        torch.jit.save(scripted, buffer, _extra_files={"limbeck.json": json.dumps(props)})
    return buffer.getvalue()


def _torch_export(model: nn.Module, example: Tensor, props: dict[str, str], names: Sequence[str]) -> bytes:
    buffer = io.BytesIO()
    with torch.no_grad():
        program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, buffer, extra_files={"limbeck.json": json.dumps(props)})
    return buffer.getvalue()


def _run_onnx(content: bytes) -> Runner:
    runtime = require("onnxruntime", "the check of an ONNX file", "export")
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda x: [torch.from_numpy(found) for found in session.run(None, {"images": x.numpy()})]


def _run_torchscript(content: bytes) -> Runner:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript; runtimes that want it remain
        return torch.jit.load(io.BytesIO(content))


def _run_torch_export(content: bytes) -> Runner:
    return torch.export.load(io.BytesIO(content)).module()


RUNNERS: dict[str, Callable[[bytes], Runner]] = {
    "onnx": _run_onnx,
    "torchscript": _run_torchscript,
    "torch-export": _run_torch_export,
}
