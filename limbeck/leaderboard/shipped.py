"""Which shipped config makes a benchmark's pair."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from limbeck.engine.config import PairConfig, load_pair, shipped_configs

Key = tuple[str, str]
_load = cache(load_pair)


def shipped_pairs(wanted: Iterable[Key]) -> dict[Key, tuple[str, PairConfig]]:
    """The name and config of each of some (benchmark, pair) that Limbeck ships; the others are left out.

    Running every config takes seconds, so those whose text has the pair's name come first.
    """
    missing = set(wanted)
    pairs = {pair for _, pair in missing}
    texts = {name: path.read_text(encoding="utf-8") for name, path in shipped_configs().items()}
    likely = [name for name, text in texts.items() if any(f'"{p}"' in text for p in pairs)]
    found: dict[Key, tuple[str, PairConfig]] = {}
    for name in dict.fromkeys([*likely, *texts]):
        if not missing:
            break
        made = _load(name)
        key = (made.benchmark, made.pair)
        if key in missing:
            missing.remove(key)
            found[key] = (name, made)
    return found
