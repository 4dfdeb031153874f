"""The site: a folder of static pages that show records offline, each figure one click from the records behind it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from limbeck.errors import OutputError
from limbeck.leaderboard.checks import check_apart
from limbeck.leaderboard.places import Places
from limbeck.leaderboard.site.pages import MANIFEST, Track, write_site
from limbeck.leaderboard.site.pictures import Note, pictures_of
from limbeck.leaderboard.store import load_results


def build_site(
    folder: Places,
    out: str | Path,
    *,
    benchmarks: Collection[str] | None = None,
    title: str = "Limbeck leaderboard",
    cards: Iterable[Mapping[str, Any]] = (),
    note: Note | None = None,
    track: Track | None = None,
) -> Path:
    """Build the site of a folder of records, or of several as of one; returns the path of its index.html.

    The site is made beside `out` and moved into place when it is whole. An older one there is replaced; other files
    in `out` are left alone. Pictures that `limbeck leaderboard examples`, `masks`, `voxels`, `reliability`, `chosen`,
    `samples`, `trajectories`, `hand-over` and `controls` drew there are shown.

    Args:
        cards: of the zoo's students, as JSON values; those whose record is among the records and has their weights get
            a page.
        note: gets one line for each picture that is not shown, for it was drawn for other records.
        track: goes through the ids of records that are done, given how many there are, and says how far it is.
    Raises: ResultsError and CorruptFile as `load_results`; OutputError when `out` cannot be used.
    """
    results = load_results(folder, benchmarks=benchmarks)
    target = Path(out).resolve()
    check_apart(out, folder)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
            made = Path(scratch) / "new"
            pictures = [pictures_of(group, target, note) for group in results]
            write_site(made, results, title, pictures, list(cards), track)
            _install(made, target, Path(scratch) / "old")
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}; choose another --out") from error
    return Path(out) / "index.html"


def _install(made: Path, target: Path, old: Path) -> None:
    """Move a whole site into place, entry by entry with index.html last; put the old one back when that fails.

    Raises: OutputError when an entry of the same name was not made by an earlier build.
    """
    if not target.exists():
        made.replace(target)
        return
    if not target.is_dir():
        raise OutputError(f"{target}: is a file; choose another --out")
    manifest = target / MANIFEST
    owned = set(manifest.read_text(encoding="utf-8").split("\n")) if manifest.is_file() else set()
    entries = sorted((p.name for p in made.iterdir()), key=lambda n: (n == "index.html", n))
    foreign = [n for n in entries if n != MANIFEST and (target / n).exists() and n not in owned]
    if foreign:
        raise OutputError(
            f"{target / foreign[0]}: was not made by this command and would be lost; choose another --out"
        )
    old.mkdir()
    moved: list[str] = []
    try:
        for name in entries:
            moved.append(name)
            if (target / name).exists():
                (target / name).replace(old / name)
            (made / name).replace(target / name)
    except OSError:
        _restore(moved, target, old)
        raise


def _restore(names: Iterable[str], target: Path, old: Path) -> None:
    for name in names:
        if (old / name).exists():
            if (target / name).is_dir():
                shutil.rmtree(target / name)
            (old / name).replace(target / name)
