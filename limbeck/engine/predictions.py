"""A frozen member's predictions on a split, computed once and kept: every run of a suite asks for the same ones."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.data import DataLoader

from limbeck.engine.weights import sha256_json
from limbeck.errors import CorruptFile

if TYPE_CHECKING:
    from limbeck.engine.distiller import Distiller

_VERSION = 1


@dataclass(frozen=True)
class PredictionCache:
    """Predictions by a hash of weights, split and preprocessing; only such as are dicts of tensors, one a batch.

    folder: where the files lie. model: whose frozen members are remembered.
    """

    folder: Path
    model: Distiller

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
        batches: list[dict[str, Tensor]] = [{} for _ in loader]
        for key, value in stored.items():
            index, _, name = key.partition("/")
            batches[int(index)][name] = value
        return batches

    def save(self, member: nn.Module, loader: DataLoader, predictions: Sequence[Any]) -> None:
        """Keep predictions, whole or not at all; nothing is done for a trained member or another kind of prediction."""
        from safetensors.torch import save_file

        path = self._path(member, loader)
        dicts = all(isinstance(p, dict) and all(isinstance(v, Tensor) for v in p.values()) for p in predictions)
        if path is None or not dicts:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        flat = {f"{i}/{name}": value.contiguous() for i, p in enumerate(predictions) for name, value in p.items()}
        handle, temporary = tempfile.mkstemp(prefix=".predictions-", dir=path.parent)
        os.close(handle)
        try:
            save_file(flat, temporary)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)

    def _path(self, member: nn.Module, loader: DataLoader) -> Path | None:
        name = next((n for n, m in self.model.frozen.items() if m is member), None)
        pipeline = getattr(loader.dataset, "pipeline", None)
        if name is None or pipeline is None:
            return None
        key = sha256_json(
            dict(
                version=_VERSION,
                teacher=self.model.frozen_hashes[name],
                pipeline=pipeline(),
                inputs=self.model.adapter.describe(self.model.deploy, member),
                precision=self.model.specs[name].precision,
                batch=loader.batch_size,
            )
        )
        return self.folder / f"predictions-{key[:32]}.safetensors"
