"""Data sets that several runs of one process share: what one has read and decoded, the next one does not read again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch.utils.data import Dataset

from limbeck.engine.data import ViewDataset
from limbeck.engine.registry import DATASETS
from limbeck.engine.weights import sha256_json

_SHARED: ContextVar[dict[str, ViewDataset] | None] = ContextVar("shared data sets", default=None)


@contextmanager
def shared_data() -> Iterator[None]:
    """Within it, `make_dataset` builds a data set once for each config; inside another one that one counts.

    Files are taken to stay as they are meanwhile.
    """
    if _SHARED.get() is not None:
        yield
        return
    token = _SHARED.set({})
    try:
        yield
    finally:
        _SHARED.reset(token)


def make_dataset(config: Mapping[str, Any], where: str = "") -> Any:
    """The data set of a config, with an epoch of its own and pixels that may be shared, see `shared_data`.

    Only data sets of images that hold no other one are shared; one that wraps another builds that by this function.

    Args:
        where: in the config, for errors.
    Raises: as `DATASETS.make` does.
    """
    shared = _SHARED.get()
    if shared is None or callable(config.get("type")):
        return DATASETS.make(config, where=where)
    key = sha256_json(dict(config))
    if key not in shared:
        made = DATASETS.make(config, where=where)
        if not isinstance(made, ViewDataset) or any(isinstance(part, Dataset) for part in vars(made).values()):
            return made
        shared[key] = made
    return shared[key].again()
