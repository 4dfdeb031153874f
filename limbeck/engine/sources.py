"""Where a member's weights come from: a path, a run of this benchmark ('run://…') or the zoo ('zoo://…')."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from limbeck.errors import ConfigError, UnknownName

# Schemes of other packages, imported only when a config names one: the engine depends on none of them.
SCHEMES = {"zoo": "limbeck.zoo:weights_path"}


def resolve_weights(weights: str, runs: str | Path | None = None) -> Path:
    """The local file behind a weights string.

    Args:
        weights: a path, 'run://<record id>' below `runs`, or 'zoo://<student>'.
    Raises: UnknownName for an unknown scheme; ConfigError where 'run://' has no folder to look in.
    """
    scheme, sep, rest = weights.partition("://")
    if not sep:
        return Path(weights)
    if scheme == "run":
        if runs is None:
            raise ConfigError(f"{weights} names a run, but no folder of runs is given; pass --runs DIR or name a path")
        return Path(runs) / rest / "student.safetensors"
    if scheme not in SCHEMES:
        raise UnknownName("weights scheme", scheme, ["run", *SCHEMES], f"in {weights!r}")
    module, _, function = SCHEMES[scheme].partition(":")
    return Path(getattr(import_module(module), function)(rest))
