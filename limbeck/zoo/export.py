"""Export a student to ONNX, TorchScript or torch.export, and check that the file computes what torch does."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.engine.registry import DATASETS, require
from limbeck.engine.weights import atomic_path, sha256_file
from limbeck.errors import DataMissing, UnknownName, UserError
from limbeck.zoo.card import Card
from limbeck.zoo.load import load_student

Format = Literal["onnx", "torchscript", "torch-export"]
FORMATS: tuple[Format, ...] = ("onnx", "torchscript", "torch-export")
TOLERANCE = 1e-4  # largest absolute difference of a logit
SAMPLES = 64


@dataclass(frozen=True)
class ExportReport:
    """What was written and how it was checked.

    inputs: what it was checked with: 'real' images of the student's test split, 'random' ones where its data is absent.
    max_difference: largest absolute difference of a logit from torch; None without a check.
    """

    name: str
    path: Path
    format: Format
    file_bytes: int
    sha256: str
    inputs: Literal["real", "random"] | None = None
    samples: int = 0
    max_difference: float | None = None


def export_student(
    name: str, out: str | Path, format: str = "onnx", check: bool = True, *, zoo_dir: str | Path | None = None
) -> ExportReport:
    """Write a student as one file that takes normalised images (B, C, H, W), any B, and gives logits.

    Logits are (B, classes), or (B, classes, H, W) of a segmentation student; H and W are those of the card. ONNX names
    them 'images' and 'logits'. Preprocessing, classes and palette travel in the file: ONNX metadata_props, or the extra
    file limbeck.json of the others.

    Args:
        out: the file; written whole or not at all.
        format: 'onnx', 'torchscript' or 'torch-export'.
        check: compare with torch on images of the test split, one at a time and many at once.
    Raises: UnknownName; ExtraMissing; UserError when the file's logits are off by more than 1e-4, and nothing is kept.
    """
    writers: dict[str, Callable[[nn.Module, Tensor, dict[str, str]], bytes]] = {
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
    kind, inputs = check_inputs(card, model.preprocess)
    content = writers[format](model, inputs[:2], metadata(card))
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
    )


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


def largest_difference(model: nn.Module, run: Callable[[Tensor], Tensor], inputs: Tensor) -> float:
    """Largest absolute difference of a logit over all images at once, and over the first few one at a time."""
    with torch.inference_mode():
        expected = model(inputs)
        found = [run(inputs), torch.cat([run(one[None]) for one in inputs[:4]])]
    return max(float((f - expected[: len(f)]).abs().max()) for f in found)


def _require_onnx(check: bool) -> None:
    for module in ("onnx", "onnxscript", *(("onnxruntime",) if check else ())):
        require(module, "export to ONNX", "export")


def _onnx(model: nn.Module, example: Tensor, props: dict[str, str]) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter deprecates its own insides
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    if program is None:
        raise UserError("torch's ONNX exporter gave nothing; try another format")
    proto = program.model_proto
    require("onnx", "export to ONNX", "export").helper.set_model_props(proto, props)
    return proto.SerializeToString()


def _torchscript(model: nn.Module, example: Tensor, props: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript; runtimes that want it remain
        scripted = torch.jit.trace(model, example)
        torch.jit.save(scripted, buffer, _extra_files={"limbeck.json": json.dumps(props)})
    return buffer.getvalue()


def _torch_export(model: nn.Module, example: Tensor, props: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with torch.no_grad():
        program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, buffer, extra_files={"limbeck.json": json.dumps(props)})
    return buffer.getvalue()


def _run_onnx(content: bytes) -> Callable[[Tensor], Tensor]:
    runtime = require("onnxruntime", "the check of an ONNX file", "export")
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0])


def _run_torchscript(content: bytes) -> Callable[[Tensor], Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript; runtimes that want it remain
        return torch.jit.load(io.BytesIO(content))


def _run_torch_export(content: bytes) -> Callable[[Tensor], Tensor]:
    return torch.export.load(io.BytesIO(content)).module()


RUNNERS: dict[str, Callable[[bytes], Callable[[Tensor], Tensor]]] = {
    "onnx": _run_onnx,
    "torchscript": _run_torchscript,
    "torch-export": _run_torch_export,
}
