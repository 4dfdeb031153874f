"""Which shipped config makes a benchmark's pair."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from limbeck.engine.config import PairConfig, load_pair
from limbeck.engine.shipped import pair_configs

Key = tuple[str, str]
_load = cache(load_pair)


def shipped_pairs(wanted: Iterable[Key]) -> dict[Key, tuple[str, PairConfig]]:
    """The name and config of each of some (benchmark, pair) that Limbeck ships; the others are left out."""
    names = {key: pair_configs()[key][0] for key in sorted(set(wanted)) if key in pair_configs()}
    return {key: (name, _load(name)) for key, name in names.items()}
