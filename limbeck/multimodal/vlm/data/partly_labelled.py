"""A training set of which only some labels are known: a few a class, or named ones; the others are hidden."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from limbeck.engine.augment import sample_uniforms
from limbeck.engine.data import UNLABELLED, ViewDataset, content_hash
from limbeck.engine.registry import DATASETS, accepted_keys
from limbeck.engine.shared_data import make_dataset
from limbeck.errors import ConfigError

_POOL_SEED = 0  # decides the pool for good: every seed and every number of labels shares it, and its teacher cache


@DATASETS.register_module()
class PartlyLabelled(ViewDataset):
    """An image classification data set whose labels are hidden but for a few; `labels` of the others are -1.

    The hidden labels are dropped when the set is built: neither batches nor the content hash depend on them. Ids are
    those of the pool, 0 to N - 1, and name, classes, images and views are the wrapped set's, so that a teacher's cache
    serves every number of labels and every seed.

    The labelled images of fewer shots are among those of more, for one seed.

    Args:
        split: of the wrapped set.
        of: the wrapped set's config: dict(type='CIFAR10JPEG', augment=…), without split.
        shots: labelled images a class, drawn by `shots_seed`.
        labelled: ids that are labelled, in place of `shots`.
        labels: their labels, where not those of the wrapped set.
        shots_seed: of the draw; pair configs may say 'run', the seed of each run.
        pool: takes that many images, drawn once and for all; None takes every one.
        seed: of the augmentation, where `of` names none.
    Raises: ConfigError for a class with fewer images than `shots`, or ids or labels that there are not.

    Attributes:
        labels: (N,) int64, -1 where hidden.
        labelled, unlabelled: ids, int64, rising.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        of: Mapping[str, Any],
        shots: int | None = None,
        labelled: Sequence[int] | None = None,
        labels: Sequence[int] | None = None,
        shots_seed: int = 0,
        pool: int | None = None,
        seed: int | None = None,
    ) -> None:
        base = _build(of, split, seed)
        self.name, self.classes = base.name, list(base.classes)
        super().__init__(split, views=base.views, seed=base.seed, augment=base.augment)
        self.views = base.views
        self._base = base
        self._images = _pool(len(base), pool, self.name)
        self._images_hash = base.images_hash
        truth = np.asarray(cast(Any, base).labels)[self._images].astype(np.int64)
        cast(Any, base).labels = np.full(len(base), UNLABELLED, np.int64)
        if (shots is None) == (labelled is None):
            raise ConfigError(f"{self._who} takes either shots or labelled; got shots={shots}, labelled={labelled}")
        if isinstance(shots_seed, bool) or not isinstance(shots_seed, int):
            raise ConfigError(f"shots_seed of {self._who} is a whole number; got {shots_seed!r} ('run' is for configs)")
        if labels is not None and labelled is None:
            raise ConfigError(f"labels of {self._who} are those of `labelled` ids; name these too")
        chosen = self._draw(truth, cast(int, shots), shots_seed) if labelled is None else self._checked_ids(labelled)
        self.labels = np.full(len(self._images), UNLABELLED, np.int64)
        self._label(chosen, truth[chosen] if labels is None else labels)

    @property
    def _who(self) -> str:
        return f"PartlyLabelled {self.name}"

    def reveal(self, ids: Sequence[int] | np.ndarray, labels: Sequence[int] | np.ndarray) -> PartlyLabelled:
        """The same pool with further labels; this one stays as it is.

        Args:
            ids: of images that are not labelled yet, each once. labels: their classes.
        Raises: ConfigError.
        """
        chosen = self._checked_ids(ids)
        known = chosen[self.labels[chosen] != UNLABELLED]
        if len(known):
            raise ConfigError(f"{self._who}: image {known[0]} is labelled already; reveal unlabelled ones")
        more = copy(self)
        more.labels = self.labels.copy()
        more._label(chosen, labels)
        return more

    def _label(self, ids: np.ndarray, labels: Sequence[int] | np.ndarray) -> None:
        given = np.asarray(labels)
        if given.shape != ids.shape or given.dtype.kind not in "iu":
            raise ConfigError(f"{self._who}: {len(ids)} ids take as many whole numbers as labels; got {given.shape}")
        wrong = given[(given < 0) | (given >= len(self.classes))]
        if len(wrong):
            raise ConfigError(f"{self._who}: label {wrong[0]} is none of the classes 0 to {len(self.classes) - 1}")
        self.labels[ids] = given
        self.labelled = np.flatnonzero(self.labels != UNLABELLED)
        self.unlabelled = np.flatnonzero(self.labels == UNLABELLED)
        known = self.labels[self.labelled]
        self.content_hash = content_hash(self._images_hash, self.split, self._images, self.labelled, known)

    def _checked_ids(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        found = np.asarray(ids)
        if found.ndim != 1 or not len(found) or found.dtype.kind not in "iu":
            raise ConfigError(f"{self._who}: labelled ids are whole numbers, one at least; got {ids!r}")
        wrong = found[(found < 0) | (found >= len(self._images))]
        if len(wrong):
            raise ConfigError(f"{self._who}: id {wrong[0]} is not in the pool, whose ids are 0 to {len(self) - 1}")
        if len(np.unique(found)) < len(found):
            raise ConfigError(f"{self._who}: an id is named twice; name each once")
        return found.astype(np.int64)

    def _draw(self, truth: np.ndarray, shots: int, seed: int) -> np.ndarray:
        """`shots` ids of every class, by a hash of the image's place in the wrapped set."""
        if isinstance(shots, bool) or not isinstance(shots, int) or shots < 1:
            raise ConfigError(f"shots of {self._who} is a whole number of at least 1; got {shots!r}")
        chosen = []
        for label, name in enumerate(self.classes):
            members = np.flatnonzero(truth == label)
            if len(members) < shots:
                raise ConfigError(
                    f"{self._who}: class {name!r} has {len(members)} images in the pool, fewer than {shots} shots; "
                    "take fewer shots or a larger pool"
                )
            dice = sample_uniforms(seed, 0, self._images[members], 1)[:, 0]
            chosen.append(members[np.argsort(dice, kind="stable")[:shots]])
        return np.sort(np.concatenate(chosen))

    @property
    def pool_ids(self) -> np.ndarray:
        """(N,) places of the pool's images in the wrapped set, rising."""
        return self._images

    @property
    def files(self) -> list[str] | None:
        """Names of the pool's files, in order of ids; None where images are no files."""
        names = getattr(self._base, "files", None)
        return None if names is None else [names[i] for i in self._images]

    @property
    def paths(self) -> list[Path] | None:
        """The pool's files; None where images are no files."""
        names, root = self.files, getattr(self._base, "root", None)
        return None if names is None or root is None else [Path(root) / name for name in names]

    @property
    def images_hash(self) -> str:
        return content_hash(self._images_hash, self.split, self._images)

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self._base.set_epoch(epoch)

    def pipeline(self) -> dict[str, Any]:
        """Everything that decides the pixels: nothing of it depends on which labels are known."""
        found = self._base.pipeline()
        whole = len(self._images) == len(self._base)
        return found if whole else found | {"pool": content_hash("pool", self.split, self._images)}

    def batch(self, ids: np.ndarray) -> tuple[np.ndarray, Mapping[str, Tensor]]:
        pixels, _ = self._base.batch(self._images[ids])
        return pixels, {"labels": torch.from_numpy(self.labels[ids])}

    def __len__(self) -> int:
        return len(self._images)


def _build(of: Mapping[str, Any], split: str, seed: int | None) -> ViewDataset:
    """The wrapped data set. Raises: ConfigError for one without images' labels."""
    config = dict(of)
    if config.setdefault("split", split) != split:
        raise ConfigError(
            f"PartlyLabelled is of split {split!r}, and what it wraps of {config['split']!r}; leave one out"
        )
    kind = DATASETS.lookup(str(config.get("type", "")), "in `of` of PartlyLabelled")
    if seed is not None and "seed" in (accepted_keys(kind) or ()):
        config.setdefault("seed", seed)
    base = make_dataset(config, where="in `of` of PartlyLabelled")
    labels = np.asarray(getattr(base, "labels", []))
    if not isinstance(base, ViewDataset) or labels.shape != (len(base),) or isinstance(base, PartlyLabelled):
        raise ConfigError(f"PartlyLabelled wraps a data set of image classification; {type(base).__name__} is none")
    return base


def _pool(count: int, pool: int | None, name: str) -> np.ndarray:
    """Places of the pool's images in the wrapped set, rising. Raises: ConfigError for a pool larger than the set."""
    everything = np.arange(count)
    if pool is None:
        return everything
    if isinstance(pool, bool) or not isinstance(pool, int) or not 1 <= pool <= count:
        raise ConfigError(f"pool of PartlyLabelled {name} is between 1 and {count}, the size of the set; got {pool!r}")
    return np.sort(np.argsort(sample_uniforms(_POOL_SEED, 1, everything, 1)[:, 0], kind="stable")[:pool])
