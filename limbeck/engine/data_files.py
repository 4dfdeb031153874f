"""Finding data folders, and checking files without reading them anew in every run."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError

from limbeck.engine.paths import cache_dir
from limbeck.engine.weights import sha256_file, write_json
from limbeck.errors import CorruptFile, DataMissing, OutputError

# What decoding an image file that is not whole raises; Pillow reports some broken PNGs as SyntaxError.
BROKEN_IMAGE = (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError)
BYTE_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


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


def read_arrays(path: Path, *names: str) -> list[np.ndarray]:
    """These arrays of an .npz, checked against the folder's MANIFEST.sha256 where there is one.

    Raises: CorruptFile.
    """
    expected = read_manifest(path.parent).get(path.name)
    if expected is not None and remembered_sha256(path) != expected:
        raise damaged(path, "not the file that MANIFEST.sha256 lists", expected)
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return [arrays[name] for name in names]
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError) as error:
        raise damaged(path, f"not a whole npz file ({error})", expected) from error


def check_labels(path: Path, labels: np.ndarray, classes: int) -> None:
    """Raises: CorruptFile naming the first label that is not in 0 … classes − 1."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise damaged(path, f"label {labels[wrong[0]]} of sample {wrong[0]} is not in 0 to {classes - 1}")


def find_folder(what: str, folders: Iterable[Path], parts: Iterable[str], advice: str) -> Path:
    """The first folder that holds all these parts.

    Raises: DataMissing naming where it looked, followed by `advice`.
    """
    looked, wanted = list(folders), list(parts)
    for folder in looked:
        if all((folder / part).exists() for part in wanted):
            return folder
    raise DataMissing(f"{what} is not in {', '.join(str(f) for f in looked)}; {advice}")


def usual_folders(name: str, root: str | Path | None) -> list[Path]:
    """Where a data set is looked for: `root` and nowhere else, or $LIMBECK_DATA/<name> and then the cache folder."""
    if root is not None:
        return [Path(root)]
    shared = shared_data()
    return [*([] if shared is None else [shared / name]), cache_dir() / "data" / name]


def damaged(path: Path, reason: object, expected: str | None = None) -> CorruptFile:
    """The error for a data file that is not whole."""
    found = sha256_file(path)[:12] if path.is_file() else "none"
    wanted = f"{expected[:12]}…" if expected else "not known"
    return CorruptFile(f"{path}: {reason}; sha256 is {found}…, expected {wanted}; delete the file and get it again")


@contextlib.contextmanager
def temporary_inside(folder: Path) -> Iterator[Path]:
    """A temporary folder inside `folder`, which is made; so that what is complete can be renamed into place.

    Raises: OutputError when it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(dir=folder)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror}; set LIMBECK_CACHE to another folder") from error
    with temporary as name:
        yield Path(name)


def open_image(path: Path, expected: str | None = None) -> tuple[Image.Image, str]:
    """A decoded image of 8 bits a channel and the sha256 of its file.

    Args:
        expected: sha256 that the file has to have, or None.
    Raises: CorruptFile when it is not whole or not the expected file.
    """
    try:
        data = path.read_bytes()
        found = hashlib.sha256(data).hexdigest()
        if expected not in (None, found):
            raise damaged(path, "not the file that MANIFEST.sha256 lists", expected)
        image = Image.open(io.BytesIO(data))
        image.load()
    except BROKEN_IMAGE as error:
        reason = "no image file" if isinstance(error, UnidentifiedImageError) else error
        raise damaged(path, f"does not decode ({reason})", expected) from error
    if image.mode not in BYTE_MODES:
        raise damaged(path, f"has pixels of mode {image.mode}, not of 8 bits", expected)
    return image, found


def decoder() -> str:
    """The library that decodes images, with its version."""
    return f"pillow {PIL.__version__}"


def read_meta(root: Path) -> Any:
    """What a folder's meta.json holds; None where there is none. Raises: CorruptFile when it is no JSON file."""
    path = root / "meta.json"
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(path, f"not a JSON file ({error})") from error


def check_manifest(root: Path, meta: Any) -> None:
    """Raises: CorruptFile when `meta`, of `read_meta`, names another MANIFEST.sha256 than the folder has."""
    manifest, expected = root / "MANIFEST.sha256", meta.get("manifest_sha256") if isinstance(meta, dict) else None
    if expected is not None and manifest.is_file() and sha256_file(manifest) != expected:
        raise damaged(manifest, "not the list that meta.json names", expected)
