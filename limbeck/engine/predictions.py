"""A frozen member's predictions on a split, computed once and kept: every run of a suite asks for the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from limbeck.engine.weights import atomic_path, sha256_json
from limbeck.errors import CorruptFile, OutputError

if TYPE_CHECKING:
    from limbeck.engine.distiller import Distiller

_VERSION = 1


@dataclass(frozen=True)
class PredictionCache:
    """Predictions by a hash of weights, split and preprocessing; only such as are dicts of CPU tensors, one a batch.

    folder: where the files lie. model: whose frozen members are remembered.
    """

    folder: Path
    model: Distiller

    def keeps(self, member: nn.Module, loader: DataLoader) -> bool:
        """Whether this member's predictions on this split can be kept: it is frozen, and the data say what they are."""
        return self._path(member, loader) is not None

    def load(self, member: nn.Module, loader: DataLoader) -> list[dict[str, Tensor]] | None:
        """The member's predictions, batch by batch; None where they are not kept.

        Raises: CorruptFile.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self._path(member, loader)
        if path is None or not path.is_file():
            return None
        try:
            stored = load_file(str(path))
        except (SafetensorError, OSError) as error:
            raise CorruptFile(f"{path}: not whole ({error}); delete it") from error
        batches: list[dict[str, Tensor]] = [{} for _ in range(len(loader))]
        for key, value in stored.items():
            index, _, name = key.partition("/")
            if not index.isdecimal() or int(index) >= len(batches):
                raise CorruptFile(f"{path}: holds {key!r}, which is of none of {len(batches)} batches; delete it")
            batches[int(index)][name] = value
        if not all(batches):
            raise CorruptFile(f"{path}: lacks some of {len(batches)} batches; delete it")
        return batches

    def save(self, member: nn.Module, loader: DataLoader, predictions: Sequence[Any]) -> None:
        """Keep predictions, whole or not at all; nothing is done for a trained member or another kind of prediction.

        Raises: OutputError when the folder cannot be written or the disk is full.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        path = self._path(member, loader)
        if path is None or not all(_plain(p) for p in predictions):
            return
        # Clones: safetensors refuses tensors that share memory, as slices of the data set's labels do.
        flat = {
            f"{i}/{name}": value.clone(memory_format=torch.contiguous_format)
            for i, p in enumerate(predictions)
            for name, value in p.items()
        }
        with atomic_path(path) as temporary:
            try:
                save_file(flat, temporary)
            except SafetensorError as error:  # how it says that the disk is full
                raise OutputError(f"cannot write {path}: {error}; free space or choose another folder") from error

    def _path(self, member: nn.Module, loader: DataLoader) -> Path | None:
        name = next((n for n, m in self.model.frozen.items() if m is member), None)
        pipeline = getattr(loader.dataset, "pipeline", None)
        if name is None or pipeline is None:
            return None
        key = sha256_json(
            dict(
                version=_VERSION,
                teacher=self.model.identity(name),
                pipeline=pipeline(),
                inputs=self.model.adapter.describe(self.model.deploy, member),
                batch=loader.batch_size,
            )
        )
        return self.folder / f"predictions-{key[:32]}.safetensors"


def _plain(prediction: Any) -> bool:
    if not isinstance(prediction, dict) or not prediction:
        return False
    return all(isinstance(value, Tensor) and value.device.type == "cpu" for value in prediction.values())
