"""Which shipped config makes a benchmark's pair."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

from limbeck.engine.config import PairConfig, load_pair, shipped_configs

Key = tuple[str, str]
_PAIR = re.compile(r'^pair = "([^"]+)"$', re.MULTILINE)
_load = cache(load_pair)


@cache
def stated_pairs() -> dict[str, tuple[str, ...]]:
    """Pair → the shipped configs that state it; running a hundred configs for their names would take seconds."""
    found: dict[str, tuple[str, ...]] = {}
    for name, path in shipped_configs().items():
        match = _PAIR.search(path.read_text(encoding="utf-8"))
        if match:
            found[match[1]] = (*found.get(match[1], ()), name)
    return found


def shipped_pairs(wanted: Iterable[Key]) -> dict[Key, tuple[str, PairConfig]]:
    """The name and config of each of some (benchmark, pair) that Limbeck ships; the others are left out."""
    keys = set(wanted)
    names = dict.fromkeys(name for _, pair in sorted(keys) for name in stated_pairs().get(pair, ()))
    made = {name: _load(name) for name in names}
    return {key: (name, pair) for name, pair in made.items() if (key := (pair.benchmark, pair.pair)) in keys}
