"""Batches of labelled and unlabelled samples side by side, for semi-supervised training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

from limbeck.errors import ConfigError


class MixedBatchSampler(Sampler[list[int]]):
    """Batches of labelled ids followed by unlabelled ones, as a DataLoader's `batch_sampler`.

    Each of the two streams is an endless row of permutations of its ids that goes on from one epoch to the next. So no
    id comes again before all others have come, unless a batch needs more ids than there are. What a batch holds depends
    on seed, epoch and step alone: a resumed run goes on as if nothing had happened, and processes share one order.

    Args:
        labelled, unlabelled: ids; with no unlabelled ones every batch is labelled.
        labelled_per_batch, unlabelled_per_batch: over all processes.
        steps: batches an epoch; 0 is one pass over the labelled ids, of whole batches, one at least.
        seed: of the run.
        rank, world: of this process, which takes every `world`-th id of both parts.
    Raises: ConfigError without labelled ids, or for a part that cannot be split over the processes.
    """

    def __init__(
        self,
        labelled: Sequence[int] | np.ndarray,
        unlabelled: Sequence[int] | np.ndarray,
        *,
        labelled_per_batch: int,
        unlabelled_per_batch: int,
        steps: int = 0,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if not len(labelled):
            raise ConfigError("batches of labelled and unlabelled samples need a labelled sample; there is none")
        if labelled_per_batch < 1 or unlabelled_per_batch < 0 or steps < 0:
            raise ConfigError(
                "a batch has one labelled sample at least, and no count is negative; got "
                f"{labelled_per_batch} labelled, {unlabelled_per_batch} unlabelled, {steps} steps"
            )
        if labelled_per_batch % world or unlabelled_per_batch % world:
            raise ConfigError(
                f"{labelled_per_batch} labelled and {unlabelled_per_batch} unlabelled samples of a batch cannot be "
                f"split over {world} processes"
            )
        self.steps = steps or max(len(labelled) // labelled_per_batch, 1)
        self.epoch = 0
        self._part = slice(rank, None, world)
        self._streams = [_Stream(labelled, labelled_per_batch, f"{seed}/labelled")]
        if len(unlabelled) and unlabelled_per_batch:
            self._streams.append(_Stream(unlabelled, unlabelled_per_batch, f"{seed}/unlabelled"))

    @property
    def sampler(self) -> MixedBatchSampler:
        """Itself: where mmengine looks for what has `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; call it before its batches are asked for."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        first = self.epoch * self.steps
        for step in range(first, first + self.steps):
            yield [int(i) for stream in self._streams for i in stream.take(step)[self._part]]


class _Stream:
    """The ids of one part, permutation after permutation, `count` of them a step."""

    def __init__(self, ids: Sequence[int] | np.ndarray, count: int, name: str) -> None:
        self.ids = np.asarray(ids, np.int64)
        self.count = count
        self.name = name
        self._kept: tuple[int, np.ndarray] | None = None

    def take(self, step: int) -> np.ndarray:
        """The ids (count,) of a step, counted from the start of the run."""
        places = np.arange(step * self.count, (step + 1) * self.count)
        passes, offsets = places // len(self.ids), places % len(self.ids)
        parts = [self._permuted(int(number))[offsets[passes == number]] for number in np.unique(passes)]
        return np.concatenate(parts)

    def _permuted(self, number: int) -> np.ndarray:
        """All ids in the order of one pass; the last one asked for is kept."""
        if self._kept is None or self._kept[0] != number:
            seed = int.from_bytes(hashlib.sha256(f"{self.name}/{number}".encode()).digest()[:6], "big")
            order = torch.randperm(len(self.ids), generator=torch.Generator().manual_seed(seed))
            self._kept = (number, self.ids[order.numpy()])
        return self._kept[1]
