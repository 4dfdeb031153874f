"""Where Limbeck keeps what it can make or fetch again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The cache folder: $LIMBECK_CACHE, or .cache/limbeck in the home folder; it need not exist yet."""
    named = os.environ.get("LIMBECK_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "limbeck"
