"""The page: a folder of static files that shows records offline, each figure one click from the records behind it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from limbeck import __version__
from limbeck.errors import OutputError
from limbeck.leaderboard.checks import check_apart
from limbeck.leaderboard.curves import build_curves, curves_json
from limbeck.leaderboard.page import group_view, slugs
from limbeck.leaderboard.page_chosen import chosen_view
from limbeck.leaderboard.page_curves import place_curves
from limbeck.leaderboard.page_examples import examples_view
from limbeck.leaderboard.page_hand_over import hand_over_view
from limbeck.leaderboard.page_masks import masks_view
from limbeck.leaderboard.page_reliability import reliability_view
from limbeck.leaderboard.page_samples import samples_view, trajectories_view
from limbeck.leaderboard.page_voxels import voxels_view
from limbeck.leaderboard.pictures.chosen import find_chosen
from limbeck.leaderboard.pictures.examples import find_examples
from limbeck.leaderboard.pictures.hand_overs import find_hand_over
from limbeck.leaderboard.pictures.masks import find_masks
from limbeck.leaderboard.pictures.plans import StalePicture
from limbeck.leaderboard.pictures.reliability import find_reliability
from limbeck.leaderboard.pictures.samples import find_samples
from limbeck.leaderboard.pictures.trajectories import find_trajectories
from limbeck.leaderboard.pictures.voxels import find_voxels
from limbeck.leaderboard.stats import CONFIDENCE, MINIMUM_GAP, RELATIVE_GAP
from limbeck.leaderboard.store import Group, Results, load_results
from limbeck.leaderboard.table import build_table, environments, to_json

MANIFEST = ".limbeck-site"
Note = Callable[[str], object]
SELECTIONS = {
    "last": "last: the weights after the last epoch",
    "best_val": "best_val: the epoch that was best on the validation split",
}
_ENVIRONMENT = {
    "cpu": "CPU",
    "device": "device",
    "threads": "threads",
    "concurrent_jobs": "jobs at once",
    "world_size": "processes",
    "platform": "platform",
    "python": "Python",
    "torch": "torch",
    "limbeck": "limbeck",
    "commit": "commit",
    "runs": "runs",
}


def build_site(
    folder: str | Path,
    out: str | Path,
    *,
    benchmarks: Collection[str] | None = None,
    title: str = "Limbeck leaderboard",
    note: Note | None = None,
) -> Path:
    """Build the page of a folder of records; returns the path of its index.html.

    The page is made beside `out` and moved into place when it is whole. An older page there is replaced; other files
    in `out` are left alone. Pictures that `limbeck leaderboard examples`, `masks`, `voxels`, `reliability`, `chosen`,
    `samples`, `trajectories` and `hand-over` drew there are shown.

    Args:
        note: gets one line for each picture that is not shown, for it was drawn for other records.
    Raises: ResultsError and CorruptFile as `load_results`; OutputError when `out` cannot be used.
    """
    results = load_results(folder, benchmarks=benchmarks)
    target = Path(out).resolve()
    check_apart(out, folder)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
            made = Path(scratch) / "new"
            pictures = [_pictures(group, target, note) for group in results]
            _write(results, made, title, pictures)
            _install(made, target, Path(scratch) / "old")
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}; choose another --out") from error
    return Path(out) / "index.html"


def _pictures(group: Group, site: Path, note: Note | None) -> dict[str, dict[str, Any] | None]:
    """What the template shows of a group's pictures, by kind; None where there is none that holds."""
    return {
        "examples": _shown(lambda: find_examples(group, site), examples_view, note),
        "masks": _shown(lambda: find_masks(group, site), masks_view, note),
        "voxels": _shown(lambda: find_voxels(group, site), voxels_view, note),
        "reliability": _shown(lambda: find_reliability(group, site), reliability_view, note),
        "chosen": _shown(lambda: find_chosen(group, site), chosen_view, note),
        "samples": _shown(lambda: find_samples(group, site), samples_view, note),
        "trajectories": _shown(lambda: find_trajectories(group, site), trajectories_view, note),
        "hand_over": _shown(lambda: find_hand_over(group, site), hand_over_view, note),
    }


def _shown(find: Callable[[], Any], view: Callable[[Any], dict[str, Any]], note: Note | None) -> dict[str, Any] | None:
    try:
        found = find()
    except StalePicture as stale:
        if note is not None:
            note(str(stale))
        return None
    return None if found is None else view(found)


def _write(results: Results, made: Path, title: str, pictures: list[dict[str, Any]]) -> None:
    static = files("limbeck.leaderboard") / "static"
    assets = made / "assets"
    assets.mkdir(parents=True)
    for name in ("style.css", "page.js"):
        (assets / name).write_bytes((static / name).read_bytes())
    (assets / "plotly.min.js").write_text(_plotly(), encoding="utf-8")
    copied = sorted({r.id for g in results for r in g.records})
    for identity in copied:
        place = made / "records" / f"{identity}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(results.paths[identity], place)
    tables = [build_table(group) for group in results]
    views = []
    (made / "tables").mkdir()
    for table, slug, drawn in zip(tables, slugs(tables), pictures, strict=True):
        _write_json(made / "tables" / f"{slug}.json", to_json(table))
        view = group_view(table, slug, link=lambda identity: f"records/{quote(identity)}.json")
        views.append(view | drawn)
    for slug, curves in place_curves(build_curves(results), views):
        _write_json(made / "tables" / f"{slug}.json", curves_json(curves))
    (made / "index.html").write_text(_page(results, views, title, len(copied)), encoding="utf-8")
    (made / MANIFEST).write_text("\n".join(["assets", "records", "tables", "index.html"]) + "\n", encoding="utf-8")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def _page(results: Results, views: list[dict[str, Any]], title: str, count: int) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    jinja = Environment(
        loader=PackageLoader("limbeck.leaderboard", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    records = {r.id: r for g in results for r in g.records}.values()
    rules = sorted({g.sample.recipe.selection for g in results})
    return jinja.get_template("index.html.j2").render(
        title=title,
        version=__version__,
        groups=views,
        records=count,
        latest=max(r.finished for r in records),
        confidence=f"{100 * CONFIDENCE:.0f}",
        minimum_gap=_minimum_gap(results),
        taught=any(row["marks"].endswith("§") for view in views for row in view["rows"]),
        lower=any(not g.sample.higher_is_better for g in results),
        selections=[SELECTIONS.get(rule, rule) for rule in rules],
        environment_columns=list(_ENVIRONMENT.values()),
        environments=[_environment(e) for e in environments(records)],
    )


def _minimum_gap(results: Results) -> str:
    """The smallest gap that can be closed, in words; of the kinds of primary metrics that are there."""
    kinds = {g.sample.higher_is_better for g in results}
    percent = f"{100 * RELATIVE_GAP:g} %"
    said = {True: f"{MINIMUM_GAP} points better than", False: f"{percent} lower than"}
    return ", or where lower is better less than ".join(said[kind] for kind in sorted(kinds, reverse=True))


def _environment(found: dict[str, Any]) -> list[str]:
    commit = found["git_commit"]
    dirty = " + changes" if found["git_dirty"] else ""
    shown = {**found, "commit": f"{commit[:10]}{dirty}" if commit else "–"}
    return [str(shown[key]) for key in _ENVIRONMENT]


def _install(made: Path, target: Path, old: Path) -> None:
    """Move a whole page into place, entry by entry with index.html last; put the old one back when that fails.

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
