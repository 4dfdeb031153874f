"""The formats of exported students: ONNX, TorchScript and torch.export, written to bytes and read back."""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.engine.registry import require
from limbeck.errors import UserError

Format = Literal["onnx", "torchscript", "torch-export"]
Outputs = Tensor | Sequence[Tensor]
Runner = Callable[..., Outputs]


@dataclass(frozen=True)
class Form:
    """A student as a function of tensors, whose first axis is of any length, the same in all inputs.

    example: inputs that it is traced with.
    calls, expected: inputs that it is checked with, and what torch makes of each.
    origin, count, what: the check's samples are 'real' ones of the test split or 'random', how many, and their name.
    metadata: what a file needs to be used without this package.
    most: of the first axis, where torch.export can trace no more; the other formats take any number.
    """

    model: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    example: tuple[Tensor, ...]
    calls: Sequence[tuple[Tensor, ...]]
    expected: Sequence[Outputs]
    origin: Literal["real", "random"]
    count: int
    what: str
    metadata: dict[str, str]
    most: int | None = None

    @property
    def axes(self) -> tuple[dict[int, torch.export.Dim], ...]:
        """The free axis of each input."""
        name = "batch" if len(self.inputs) == 1 else "rows"
        free = torch.export.Dim(name) if self.most is None else torch.export.Dim(name, max=self.most)
        return tuple({0: free} for _ in self.inputs)


def largest_difference(form: Form, run: Runner) -> float:
    """Largest absolute difference of any output over all calls; infinite where outputs are of other number or shape."""
    worst = []
    for call, expected in zip(form.calls, form.expected, strict=True):
        with torch.inference_mode():
            found, wanted = flat(run(*call)), flat(expected)
        if [f.shape for f in found] != [w.shape for w in wanted]:
            return math.inf
        worst += [(f - w).abs().max() for f, w in zip(found, wanted)]
    return float(torch.stack(worst).max())  # NaN where there is one


def flat(outputs: Outputs) -> list[Tensor]:
    """One or several outputs as a list."""
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def require_onnx(check: bool) -> None:
    """Raises: ExtraMissing where a package for ONNX, or for the check of a file, is absent."""
    for module in ("onnx", "onnxscript", *(("onnxruntime",) if check else ())):
        require(module, "export to ONNX", "export")


def _onnx(form: Form) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter deprecates its own insides
        program = torch.onnx.export(
            form.model,
            form.example,
            dynamo=True,
            input_names=list(form.inputs),
            output_names=list(form.outputs),
            dynamic_shapes=form.axes,
            verbose=False,
        )
    if program is None:
        raise UserError("torch's ONNX exporter gave nothing; try another format")
    proto = program.model_proto
    require("onnx", "export to ONNX", "export").helper.set_model_props(proto, form.metadata)
    return proto.SerializeToString()


def _torchscript(form: Form) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript; runtimes that want it remain
        scripted = torch.jit.trace(form.model, form.example)
        torch.jit.save(scripted, buffer, _extra_files={"limbeck.json": json.dumps(form.metadata)})
    return buffer.getvalue()


def _torch_export(form: Form) -> bytes:
    buffer = io.BytesIO()
    with torch.no_grad():
        program = torch.export.export(form.model, form.example, dynamic_shapes=form.axes)
    torch.export.save(program, buffer, extra_files={"limbeck.json": json.dumps(form.metadata)})
    return buffer.getvalue()


def _run_onnx(content: bytes) -> Runner:
    runtime = require("onnxruntime", "the check of an ONNX file", "export")
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def run(*inputs: Tensor) -> Outputs:
        fed = {name: one.numpy() for name, one in zip(names, inputs, strict=True)}
        return [torch.from_numpy(found) for found in session.run(None, fed)]

    return run


def _run_torchscript(content: bytes) -> Runner:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript; runtimes that want it remain
        return torch.jit.load(io.BytesIO(content))


def _run_torch_export(content: bytes) -> Runner:
    return torch.export.load(io.BytesIO(content)).module()


WRITERS: dict[str, Callable[[Form], bytes]] = {
    "onnx": _onnx,
    "torchscript": _torchscript,
    "torch-export": _torch_export,
}
RUNNERS: dict[str, Callable[[bytes], Runner]] = {
    "onnx": _run_onnx,
    "torchscript": _run_torchscript,
    "torch-export": _run_torch_export,
}
