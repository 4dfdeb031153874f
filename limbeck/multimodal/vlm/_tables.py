"""What a student says of every image of a loader: probabilities and features as tables, in memory or in a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from limbeck.engine.evaluate import read_batches

if TYPE_CHECKING:
    from limbeck.engine.adapter import TaskAdapter

IN_MEMORY = 1 << 28  # bytes of probabilities or features; larger ones are kept in a file, in half precision


@torch.no_grad()
def tables_of(
    model: nn.Module,
    adapter: TaskAdapter,
    loader: Any,
    folder: Path,
    needs: frozenset[str],
    count: int | None = None,
) -> dict[str, np.ndarray]:
    """Probabilities (N, K) and features (N, d) of a loader's images in order, those of both that are needed.

    A table of more than 256 MB is a file in `folder`, float16; else it is float32 in memory.

    Args:
        count: N, where the loader is a list of batches.
    """
    ready = adapter.preprocessor(model).to(next(model.parameters()).device)
    total = len(loader.dataset) if count is None else count
    tables: dict[str, np.ndarray] = {}
    start = 0
    for batch in read_batches(adapter, loader, ready):
        inputs = adapter.member_inputs(batch, model, model)
        probabilities, features = adapter.embed(model, inputs)
        found = {"probabilities": probabilities, "features": features}
        for name in sorted(needs):
            rows = found[name].cpu().numpy()
            if name not in tables:
                tables[name] = _table(folder / f"{name}.npy", (total, rows.shape[1]))
            tables[name][start : start + len(rows)] = rows
        start += len(inputs)
    return tables


def _table(path: Path, shape: tuple[int, int]) -> np.ndarray:
    if 4 * shape[0] * shape[1] <= IN_MEMORY:
        return np.empty(shape, np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    return cast(np.ndarray, np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape))
