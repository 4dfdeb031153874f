"""What a run's metric saw of the test split, in a file beside the student: its figures can be made again from it alone.

A file holds, batch by batch, exactly what the metric's `update` got: the student's predictions with the ground truth
that they carry and, where the metric reads them, the teacher's, so that agreement with a teacher is made again too. It
is safetensors: tensors by the path at which they were found, the structure around them as JSON in the header.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.engine.config import MetricConfig, parse
from limbeck.engine.weights import atomic_path, copy_file, sha256_file
from limbeck.errors import ConfigError, CorruptFile, OutputError

PREDICTIONS_FILE = "predictions.safetensors"
MOST_BYTES = 256 << 20  # of the tensors of one file; of a larger test set nothing is saved
_VERSION = 1
_WIDE = (torch.int64, torch.int32, torch.int16)
_NARROW = (torch.uint8, torch.int8, torch.int16, torch.int32)
_KINDS = (*_WIDE, torch.uint8, torch.int8, torch.bool, torch.float16, torch.bfloat16, torch.float32, torch.float64)
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _KINDS}
# what a metric says of batches that are not what it takes
_UNREADABLE = (ConfigError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class PredictionRecorder:
    """A metric that also remembers what it is given; it computes nothing of its own, so no figure changes.

    What it remembers are the tensors that the metric got, not copies of them but for integers that fit a narrower type
    and tensors that share memory; beyond `limit` bytes it lets go of them all. So it never holds more than that.

    Args:
        metric: gives the figures. One with `reads_teacher = False` does not look at a teacher's predictions, and they
            are not remembered.
        limit: bytes of tensors.
    """

    def __init__(self, metric: Any, limit: int = MOST_BYTES) -> None:
        self.metric, self.limit = metric, limit
        self._seen: _Flat | None = _Flat(limit)

    def reset(self) -> None:
        """Forget everything, and so does the metric."""
        self.metric.reset()
        self._seen = _Flat(self.limit)

    def update(self, predictions: Sequence[Any], teacher: Sequence[Any] | None = None) -> None:
        """Give a batch to the metric and remember it; what cannot be saved ends remembering, and not the run."""
        self.metric.update(*([predictions] if teacher is None else [predictions, teacher]))
        if self._seen is None:
            return
        try:
            self._seen.add(predictions, teacher if getattr(self.metric, "reads_teacher", True) else None)
        except _NotSaved:
            self._seen = None

    def values(self) -> dict[str, float]:
        """The metric's figures."""
        return self.metric.values()

    def per_class(self) -> dict[str, list[float]]:
        """The metric's figures by class."""
        return self.metric.per_class()

    def save(self, path: str | Path, **facts: str) -> str | None:
        """Save what was given since `reset`, whole or not at all, and let go of it; gives the file's sha256.

        Args:
            facts: what the file is of, for its header: the record's id, the hash of its config.
        Returns: None where nothing is saved, and no file is there then: there was no batch, it was more than `limit`
            bytes, or it held other things than tensors, numbers, text and None in dicts with text as keys, in lists and
            in tuples.
        Raises: OutputError when the folder cannot be written or the disk is full.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        seen, self._seen = self._seen, None
        if seen is None or not seen.batches:
            Path(path).unlink(missing_ok=True)
            return None
        header = json.dumps(dict(version=_VERSION, **facts, batches=seen.batches), allow_nan=False)
        with atomic_path(path) as temporary:
            try:
                save_file(seen.tensors, temporary, metadata={"limbeck": header})  # one key: several would be shuffled
            except SafetensorError as error:  # how it says that the disk is full
                raise OutputError(f"cannot write {path}: {error}; free space or choose another folder") from error
        return sha256_file(path)


class _NotSaved(Exception):
    """What is seen is too large, or of a kind that a file does not hold."""


class _Flat:
    """Batches as tensors by name and, for the rest, JSON values; see `_node` for these."""

    def __init__(self, limit: int) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.batches: list[dict[str, Any]] = []
        self._left = limit
        self._places: set[int] = set()  # of memory that is taken; the tensors above keep it

    def add(self, predictions: Sequence[Any], teacher: Sequence[Any] | None) -> None:
        path = str(len(self.batches))
        batch = {"student": self._node(list(predictions), path, "")}
        if teacher is not None:
            batch["teacher"] = self._node(list(teacher), path, "teacher/")
        self.batches.append(batch)

    def _node(self, value: Any, path: str, prefix: str) -> Any:
        """None, bools, numbers and text are themselves; the others are a dict of one kind, such as {"list": […]}."""
        if isinstance(value, Tensor):
            return self._tensor(value, path, prefix)
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": str(float(value))}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {"dict": {key: self._node(part, f"{path}/{key}", prefix) for key, part in value.items()}}
        if isinstance(value, (list, tuple)):
            parts = [self._node(part, f"{path}/{index}", prefix) for index, part in enumerate(value)]
            return {"list" if isinstance(value, list) else "tuple": parts}
        raise _NotSaved

    def _tensor(self, value: Tensor, path: str, prefix: str) -> dict[str, str]:
        if value.dtype not in _KINDS or value.layout != torch.strided:
            raise _NotSaved
        tensor = _narrow(value.detach().cpu())
        own = {} if tensor.dtype == value.dtype else {"dtype": str(value.dtype).removeprefix("torch.")}
        name = prefix + path
        if prefix and _same(self.tensors.get(path), tensor):
            return {"tensor": path, **own}  # the ground truth, which student and teacher both carry
        while name in self.tensors:  # {"a": {"b": …}, "a/b": …}
            name += "'"
        self._left -= tensor.nbytes
        if self._left < 0:
            raise _NotSaved
        self.tensors[name] = self._alone(tensor)
        return {"tensor": name, **own}

    def _alone(self, tensor: Tensor) -> Tensor:
        """The tensor with memory of its own, as safetensors wants it: a slice would also keep the whole."""
        storage = tensor.untyped_storage()
        if not tensor.is_contiguous() or storage.nbytes() != tensor.nbytes or storage.data_ptr() in self._places:
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        if tensor.numel():
            self._places.add(tensor.untyped_storage().data_ptr())
        return tensor


def _narrow(tensor: Tensor) -> Tensor:
    """Integers in the narrowest type that holds them all."""
    if tensor.dtype not in _WIDE or not tensor.numel():
        return tensor
    low, high = (int(end) for end in tensor.aminmax())
    for dtype in _NARROW:
        limits = torch.iinfo(dtype)
        if limits.bits < torch.iinfo(tensor.dtype).bits and limits.min <= low and high <= limits.max:
            return tensor.to(dtype)
    return tensor


def _same(one: Tensor | None, other: Tensor) -> bool:
    return one is not None and one.dtype == other.dtype and torch.equal(one, other)


def read_predictions(path: str | Path) -> Iterator[tuple[list[Any], list[Any] | None]]:
    """What a metric was given, batch by batch: the student's predictions, and the teacher's or None.

    Raises: CorruptFile.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as opened:
            header = json.loads((opened.metadata() or {})["limbeck"])
            if header["version"] != _VERSION:
                raise CorruptFile(f"{path}: predictions of version {header['version']!r}, and this reads {_VERSION}")
            for batch in header["batches"]:
                teacher = _value(batch["teacher"], opened) if "teacher" in batch else None
                yield _value(batch["student"], opened), teacher
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CorruptFile(f"{path}: no whole file of predictions ({error}); get it or run it again") from error


def _value(node: Any, opened: Any) -> Any:
    if not isinstance(node, dict):
        return node
    if "tensor" in node:
        tensor = opened.get_tensor(node["tensor"])
        return tensor.to(_DTYPES[node["dtype"]]) if "dtype" in node else tensor
    ((kind, parts),) = node.items()
    if kind == "float":
        return float(parts)
    if kind == "dict":
        return {key: _value(part, opened) for key, part in parts.items()}
    return {"list": list, "tuple": tuple}[kind](_value(part, opened) for part in parts)


def saved_figures(config: Mapping[str, Any], path: str | Path) -> tuple[dict[str, float], dict[str, list[float]]]:
    """The figures of the test split, and those by class, made again from a file by the metric of a record's config.

    Nothing else is needed: no data set but what a metric itself compares with, no weights, no GPU.

    Raises: CorruptFile, also for predictions that the metric does not take; ConfigError when the metric cannot be
        built on this machine; DataMissing, ExtraMissing.
    """
    metric = parse(MetricConfig, config.get("metric"), "record config").build()
    metric.reset()
    try:
        for student, teacher in read_predictions(path):
            metric.update(*([student] if teacher is None else [student, teacher]))
        return metric.values(), metric.per_class()
    except _UNREADABLE as error:
        raise CorruptFile(
            f"{path}: not what {type(metric).__name__} takes ({error}); get it or run it again"
        ) from error


def copy_predictions(source: Path, folder: Path) -> None:
    """Copy the predictions of a run's folder, where it has any, into another one."""
    place = folder / PREDICTIONS_FILE
    if not (source / PREDICTIONS_FILE).is_file():
        place.unlink(missing_ok=True)
        return
    copy_file(source / PREDICTIONS_FILE, place)
