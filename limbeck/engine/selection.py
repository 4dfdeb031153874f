"""Choosing which images to label next: what a strategy is given, and the base of every strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from limbeck.errors import ConfigError

Progress = Callable[[int, int, str], None]  # (done, total, unit): units are "images" and "picks"

# A block of rows and what is made from it should stay in a core's second-level cache: measured fastest there.
BLOCK_BYTES = 1 << 19
SUM_TOLERANCE = 0.01  # float16 rounds 1,000 probabilities to a sum within about 0.001 of 1


def silent(done: int, total: int, unit: str) -> None:
    """Progress that nobody watches."""


def block_rows(width: int, itemsize: int = 4) -> int:
    """Rows of `width` numbers that make one block."""
    return max(1, BLOCK_BYTES // (width * itemsize))


def row_blocks(
    values: np.ndarray, ids: np.ndarray, *, rows: int | None = None, dtype: type = np.float32
) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows of a large array in blocks, so that the whole is never copied.

    Args:
        values: (N, D) floating, in memory or memory-mapped.
        ids: (n,) rows to read; ascending ids read a file in order.
        rows: rows of a block; None takes `block_rows`.
        dtype: np.float32 or np.float64, of what is yielded.
    Yields: the place in `ids`, and a fresh contiguous array (rows, D) that the caller may change.
    """
    step = rows or block_rows(values.shape[1], np.dtype(dtype).itemsize)
    values = values.view(np.ndarray)  # a memmap makes a memmap of every block, which takes as long as a small block
    for start in range(0, len(ids), step):
        where = slice(start, min(start + step, len(ids)))
        block = np.ascontiguousarray(values[ids[where]])
        if block.dtype == np.float16:  # torch converts half precision some ten times faster than numpy
            block = torch.from_numpy(block).float().numpy()
        yield where, block.astype(dtype, copy=False)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Pool:
    """All images of one round of active learning: what the student says of them, and which have labels.

    Ids are row numbers of `probabilities` and `features`, and stay what they are from round to round. Both id arrays
    are kept in ascending order, `labels` with them: ties go to the lowest id, and files are read in order. Rows of ids
    in neither array, such as images outside a random candidate subset, are never read.

    Args:
        probabilities: (N, K) float16, float32 or float64, K ≥ 2, rows sum to 1; may be a np.memmap. None where no
            strategy asks for them.
        features: (N, d), same types; or None.
        labelled, labels: (L,) ids and their classes in 0 … K − 1.
        unlabelled: (U,) ids.
    Raises: ConfigError, naming the first id that is wrong, for shapes and types, ids twice, in both arrays or out of
        range, labels out of range, values that are not finite, rows that do not sum to 1 within 0.01.
    """

    probabilities: np.ndarray | None = None
    features: np.ndarray | None = None
    labelled: np.ndarray
    labels: np.ndarray
    unlabelled: np.ndarray

    def __post_init__(self) -> None:
        labelled, labels = _integers("labelled", self.labelled), _integers("labels", self.labels)
        if labelled.shape != labels.shape:
            raise ConfigError(f"pool: {len(labelled)} labelled ids but {len(labels)} labels; give one label an id")
        order = np.argsort(labelled, kind="stable")
        object.__setattr__(self, "labelled", labelled[order])
        object.__setattr__(self, "labels", labels[order])
        object.__setattr__(self, "unlabelled", np.sort(_integers("unlabelled", self.unlabelled)))
        for name, least in (("probabilities", 2), ("features", 1)):
            _check_table(name, getattr(self, name), least)
        self._check_ids()
        self._check_values()

    @property
    def images(self) -> int:
        """N; where there are neither probabilities nor features, one more than the largest id."""
        for table in (self.probabilities, self.features):
            if table is not None:
                return len(table)
        return 1 + max((int(ids[-1]) for ids in (self.labelled, self.unlabelled) if len(ids)), default=-1)

    @property
    def classes(self) -> int | None:
        """K; None without probabilities."""
        return None if self.probabilities is None else self.probabilities.shape[1]

    def _check_ids(self) -> None:
        tables = (self.probabilities, self.features)
        if tables[0] is not None and tables[1] is not None and len(tables[0]) != len(tables[1]):
            raise ConfigError(f"pool: probabilities of {len(tables[0])} images, features of {len(tables[1])}")
        for name in ("labelled", "unlabelled"):
            ids = getattr(self, name)
            if len(ids) and (ids[0] < 0 or ids[-1] >= self.images):
                wrong = ids[0] if ids[0] < 0 else ids[-1]
                raise ConfigError(f"pool: {name} id {wrong} is not in 0 to {self.images - 1}")
            twice = ids[1:][ids[1:] == ids[:-1]]
            if len(twice):
                raise ConfigError(f"pool: {name} has id {twice[0]} more than once")
        both = np.intersect1d(self.labelled, self.unlabelled, assume_unique=True)
        if len(both):
            raise ConfigError(f"pool: id {both[0]} is both labelled and unlabelled")
        top = self.classes
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= (np.inf if top is None else top)))
        if len(wrong):
            raise ConfigError(
                f"pool: label {self.labels[wrong[0]]} of id {self.labelled[wrong[0]]} is not "
                + ("a class" if top is None else f"in 0 to {top - 1}")
            )

    def _check_values(self) -> None:
        used = np.sort(np.concatenate([self.labelled, self.unlabelled]))
        if self.probabilities is not None:
            for where, block in row_blocks(self.probabilities, used):
                total, least = block.sum(1), block.min(1)
                wrong = np.flatnonzero(~((np.abs(total - 1) <= SUM_TOLERANCE) & (least >= 0)))  # NaN compares false
                if len(wrong):
                    row, sum_ = used[where][wrong[0]], total[wrong[0]]
                    reason = f"sum to {sum_:g}, not 1" if least[wrong[0]] >= 0 else "are negative or not finite"
                    raise ConfigError(f"pool: probabilities of id {row} {reason}; give soft-max outputs")
        if self.features is not None:
            for where, block in row_blocks(self.features, used):
                wrong = np.flatnonzero(~np.isfinite(block).all(1))
                if len(wrong):
                    raise ConfigError(f"pool: features of id {used[where][wrong[0]]} are not finite")


class Strategy:
    """A rule that chooses the images to label next.

    Subclasses implement `pick`; `choose` checks what every strategy has to check.

    - `needs` names what of the pool the rule reads, 'probabilities' and 'features', so that a loop computes no more;
    - random numbers come from the generator that `pick` is given, and from nowhere else;
    - `progress(done, total, unit)` is told of passes over the pool (unit 'images') and of choices (unit 'picks').
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    def choose(
        self, pool: Pool, budget: int, *, seed: int | Sequence[int], progress: Progress | None = None
    ) -> np.ndarray:
        """Ids of `budget` unlabelled images, (budget,) int64, distinct, in order of choice.

        Args:
            seed: the same pool, budget and seed give the same ids; a sequence such as (seed, round) is one seed.
            progress: see the class.
        Raises: ConfigError for a budget below 1 or above the number of unlabelled images, or a pool that lacks what
            the strategy needs.
        """
        name = type(self).__name__
        if isinstance(budget, bool) or not isinstance(budget, (int, np.integer)) or budget < 1:
            raise ConfigError(f"{name}: budget has to be a whole number of at least 1; got {budget!r}")
        if budget > len(pool.unlabelled):
            raise ConfigError(
                f"{name}: budget {budget} is more than the {len(pool.unlabelled)} unlabelled images; lower the budget"
            )
        for need in sorted(self.needs):
            if getattr(pool, need) is None:
                raise ConfigError(f"{name} chooses by {need}, and the pool has none; give Pool(…, {need}=…)")
        found = self.pick(pool, int(budget), np.random.default_rng(seed), progress or silent)
        chosen = np.asarray(found, dtype=np.int64)
        # The rule may be a user's own: a labelled or doubled id would corrupt every later round.
        if len(np.unique(chosen)) != budget or chosen.shape != (budget,) or not np.isin(chosen, pool.unlabelled).all():
            raise ConfigError(f"{name}.pick has to return {budget} distinct unlabelled ids; got {chosen.tolist()[:20]}")
        return chosen

    def pick(self, pool: Pool, budget: int, rng: np.random.Generator, progress: Progress) -> np.ndarray:
        """The ids, in order of choice; 1 ≤ budget ≤ U is checked already."""
        raise NotImplementedError(f"{type(self).__name__} does not implement pick")


def _integers(name: str, value: np.ndarray) -> np.ndarray:
    found = np.asarray(value)
    if found.ndim != 1 or (found.dtype.kind not in "iu" and found.size):
        raise ConfigError(f"pool: {name} has to be a list of whole numbers; got {found.dtype} of shape {found.shape}")
    return found.astype(np.int64)


def _check_table(name: str, table: np.ndarray | None, least: int) -> None:
    if table is None:
        return
    if not isinstance(table, np.ndarray) or table.ndim != 2 or table.shape[1] < least:
        shape = getattr(table, "shape", type(table).__name__)
        raise ConfigError(f"pool: {name} has to be an array (images, {least} or more); got {shape}")
    if table.dtype not in (np.float16, np.float32, np.float64):
        raise ConfigError(f"pool: {name} has to be float16, float32 or float64; got {table.dtype}")
