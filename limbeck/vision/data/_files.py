"""Finding data folders, and checking files without reading them anew in every run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

from limbeck.engine.paths import cache_dir
from limbeck.engine.weights import sha256_file, write_json
from limbeck.errors import CorruptFile, OutputError


def shared_data() -> Path | None:
    """The folder that $LIMBECK_DATA names, or None."""
    named = os.environ.get("LIMBECK_DATA")
    return Path(named) if named else None


def remembered_sha256(path: Path) -> str:
    """A file's sha256; read anew only when its size or time has changed since the last run."""
    stat = path.stat()
    memo = cache_dir() / "hashes" / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:24]}.json"
    state = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    try:
        known = json.loads(memo.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = None
    if isinstance(known, dict) and {k: known.get(k) for k in state} == state and "sha256" in known:
        return known["sha256"]
    found = sha256_file(path)
    with contextlib.suppress(OutputError):  # a read-only cache costs time, not the run
        write_json(memo, {**state, "sha256": found})
    return found


def read_manifest(folder: Path) -> dict[str, str]:
    """File name → sha256 from MANIFEST.sha256; empty where the folder has none."""
    path = folder / "MANIFEST.sha256"
    if not path.is_file():
        return {}
    lines = (line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    return {name.strip(): sha256 for sha256, name in lines}


def damaged(path: Path, reason: object, expected: str | None = None) -> CorruptFile:
    """The error for a data file that is not whole."""
    found = sha256_file(path)[:12] if path.is_file() else "none"
    wanted = f"{expected[:12]}…" if expected else "not known"
    return CorruptFile(f"{path}: {reason}; sha256 is {found}…, expected {wanted}; delete the file and get it again")
