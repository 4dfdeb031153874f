"""Teacher cache: a frozen member's taps, stored once per (sample, view) where the pipeline is deterministic.

A cache is a folder named by a hash of everything that decides its content: teacher weights, the data pipeline, the
taps and their shapes, and the stored precision. A change of any of them makes another folder; no stale one is read.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.engine.weights import sha256_json
from limbeck.errors import ConfigError, CorruptFile, OutputError, TrainingStopped

_VERSION = 1


def cache_key(
    *,
    teacher_hash: str,
    pipeline: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
    dtype: str,
    inputs: Any = None,
) -> str:
    """The name of the cache that holds exactly this.

    Args:
        teacher_hash: of the teacher's weights.
        pipeline: what decides the pixels: data set hash, split, augmentation, seed, views.
        shapes: tap → shape of one sample.
        dtype: stored precision.
        inputs: how the teacher's input is made from the pixels (normalisation, size, precision).
    """
    return sha256_json(
        dict(version=_VERSION, teacher=teacher_hash, pipeline=pipeline, shapes=shapes, dtype=dtype, inputs=inputs)
    )


class TeacherCache:
    """Memory-mapped taps of shape (samples × views, …) with a byte per row that says whether it is filled.

    Values pass through the stored precision on the first step too, so a cold and a warm run see the same numbers.

    Args:
        folder: the cache's own folder, named by its key.
        shapes: tap → shape of one sample.
        samples, views: rows are `id * views + view`.
        dtype: 'float16' or 'float32'.
    Raises: OutputError when the folder cannot be written or has no room; CorruptFile when a file has another size than
        it must have.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        shapes: Mapping[str, Sequence[int]],
        samples: int,
        views: int,
        dtype: str = "float16",
    ) -> None:
        self.folder = Path(folder)
        self.samples = samples
        self.views = views
        self.rows = samples * views
        self.dtype = np.dtype(dtype)
        self.shapes = {tap: tuple(int(n) for n in shape) for tap, shape in shapes.items()}
        if not (self.folder / "meta.json").is_file():
            self._create()
        self._open()

    @property
    def nbytes(self) -> int:
        """Size on disk when filled."""
        return sum(self._bytes(tap) for tap in self.shapes)

    def _bytes(self, tap: str) -> int:
        return int(np.prod((self.rows, *self.shapes[tap]), dtype=np.int64)) * self.dtype.itemsize

    def _create(self) -> None:
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(error) from error
        free = shutil.disk_usage(self.folder.parent).free
        if self.nbytes > free:
            raise OutputError(
                f"the teacher cache needs {self.nbytes / 1e9:.1f} GB in {self.folder.parent}, "
                f"which has {free / 1e9:.1f} GB free; use fewer views or set cache=None"
            )
        temporary = None
        try:
            temporary = Path(tempfile.mkdtemp(prefix=".cache-", dir=self.folder.parent))
            for index, tap in enumerate(self.shapes):
                _reserve(temporary / f"tap{index}.bin", self._bytes(tap))
            (temporary / "filled.bin").write_bytes(bytes(self.rows))
            (temporary / "meta.json").write_text(json.dumps(self._meta(), indent=1))
            os.rename(temporary, self.folder)
        except OSError as error:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            if (self.folder / "meta.json").is_file():
                return  # another run made it first
            if self.folder.exists():
                raise CorruptFile(f"{self.folder / 'meta.json'} is missing; delete {self.folder}") from error
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> OutputError:
        return OutputError(
            f"the teacher cache cannot be used in {self.folder.parent}: {error.strerror}; "
            "choose another folder or set cache=None"
        )

    def _meta(self) -> dict[str, Any]:
        return dict(
            version=_VERSION,
            rows=self.rows,
            views=self.views,
            dtype=self.dtype.name,
            taps=[dict(tap=tap, shape=list(shape)) for tap, shape in self.shapes.items()],
        )

    def _open(self) -> None:
        try:
            meta = json.loads((self.folder / "meta.json").read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CorruptFile(f"{self.folder / 'meta.json'}: not whole ({error}); delete the folder") from error
        if meta != self._meta():
            raise CorruptFile(f"{self.folder}: holds {meta}, expected {self._meta()}; delete the folder")
        self._filled = self._map("filled.bin", np.dtype(np.uint8), (self.rows,))
        self._maps = {
            tap: self._map(f"tap{index}.bin", self.dtype, (self.rows, *shape))
            for index, (tap, shape) in enumerate(self.shapes.items())
        }

    def _map(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
        path = self.folder / name
        expected = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        found = path.stat().st_size if path.is_file() else -1
        if found != expected:
            said = "is missing" if found < 0 else f"has {found} bytes"
            raise CorruptFile(f"{path} {said}, expected {expected}; delete {self.folder}")
        try:
            return np.memmap(path, dtype=dtype, mode="r+", shape=shape)
        except OSError as error:
            raise self._unusable(error) from error

    def _rows_of(self, ids: Tensor, views: Tensor | None) -> np.ndarray:
        samples = ids.cpu().numpy()
        view = np.zeros_like(samples) if views is None else views.cpu().numpy()
        # Never another row's taps.
        if ((samples < 0) | (samples >= self.samples) | (view < 0) | (view >= self.views)).any():
            raise ConfigError(
                f"the teacher cache holds {self.samples} samples with {self.views} views; the batch has sample ids "
                f"{samples.min()} to {samples.max()} and views {view.min()} to {view.max()}"
            )
        return samples * self.views + view

    def missing(self, ids: Tensor, views: Tensor | None) -> Tensor:
        """Which of these samples (B,) are not stored yet."""
        return torch.from_numpy(self._filled[self._rows_of(ids, views)] == 0)

    def get(self, ids: Tensor, views: Tensor | None, taps: Sequence[str]) -> dict[str, Tensor] | None:
        """The taps (B, …) of these samples in float32, or None where any is not stored yet."""
        rows = self._rows_of(ids, views)
        if not self._filled[rows].all():
            return None
        return {tap: torch.from_numpy(self._maps[tap][rows].astype(np.float32)) for tap in taps}

    def put(self, ids: Tensor, views: Tensor | None, taps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Store taps (B, …) and give them back as a later `get` would, on their own device."""
        rows = self._rows_of(ids, views)
        given = {}
        for tap, value in taps.items():
            exact = value.detach().float().cpu().numpy()
            with np.errstate(over="ignore"):
                stored = exact.astype(self.dtype)
            if np.isinf(stored).any() and not np.isinf(exact).any():
                peak = np.abs(exact).max()
                raise TrainingStopped(
                    f"tap {tap!r} reaches {peak:.3g}, more than {self.dtype} holds; set cache.dtype='float32'"
                )
            self._maps[tap][rows] = stored
            given[tap] = torch.from_numpy(stored.astype(np.float32)).to(value.device)
        if set(taps) == set(self.shapes):
            self._filled[rows] = 1  # last: a row is read only once all its taps are there
        return given

    @property
    def filled(self) -> float:
        """Share of rows that are stored, in [0, 1]."""
        return float(np.count_nonzero(self._filled)) / max(self.rows, 1)


def _reserve(path: Path, size: int) -> None:
    """Make a file of zeros whose blocks are there: writing a mapped page that finds no room later kills the process."""
    with open(path, "wb") as file:
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
