"""Chosen images as a sheet to be labelled: a CSV file to fill in, and a page of thumbnails to look at."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from limbeck.engine.weights import atomic_path
from limbeck.errors import ConfigError, OutputError, UserError
from limbeck.multimodal.vlm._images import PIXELATED, Picture, as_image, content_hash, data_uri, thumbnail
from limbeck.multimodal.vlm.oracle import read_table

COLUMNS = ("id", "file", "suggestion", "probability", "label")
THUMBNAIL = 192  # pixels a side, twice what a phone shows


class Sheet(NamedTuple):
    """What `write_sheet` wrote. duplicates: groups of ids whose images have the same bytes."""

    labels: Path
    page: Path
    duplicates: list[list[int]]


def write_sheet(
    folder: str | Path,
    ids: Sequence[int] | np.ndarray,
    images: Sequence[Picture] | np.ndarray,
    classes: Sequence[str],
    suggestions: np.ndarray | None = None,
    names: Sequence[str] | None = None,
) -> Sheet:
    """Write `labels.csv`, with an empty label column, and the self-contained `sheet.html`; each whole or not at all.

    `labels.csv` is UTF-8 with a byte-order mark, so that spreadsheets show names as they are; `LabelFile` reads it.

    Args:
        ids: (n,) chosen ids, in order of choice.
        images: (n,) paths, PIL images or pixels (C, H, W) uint8, in the same order.
        classes: (K,) names.
        suggestions: the student's probabilities (n, K); the likeliest class is suggested.
        names: (n,) file names to show; None takes the paths, and nothing of pixels.
    Raises: ConfigError where lengths differ or an id comes twice; CorruptFile or DataMissing naming an image that
        cannot be read; OutputError where the folder cannot be written or its labels.csv has labels already.
    """
    root, chosen = Path(folder), [int(i) for i in ids]
    shown = _names(images) if names is None else [str(name) for name in names]
    _check(chosen, len(images), len(shown), classes, suggestions)
    labels, page = root / "labels.csv", root / "sheet.html"
    _keep_labels(labels)
    guesses = _guesses(chosen, classes, suggestions)
    alike = [[chosen[place] for place in group] for group in duplicates(images)]
    twins = {i: [j for j in group if j != i] for group in alike for i in group}
    cells = []
    for i, picture, name, (guess, probability) in zip(chosen, images, shown, guesses, strict=True):
        small = thumbnail(as_image(picture, f"of id {i}"), THUMBNAIL)
        cells.append(
            dict(id=i, file=name, suggestion=guess, probability=probability, twins=twins.get(i, []))
            | dict(uri=data_uri(small), width=small.width, height=small.height, tiny=max(small.size) <= PIXELATED)
        )
    text = _render(cells, list(classes), alike)
    with atomic_path(page) as new_page, atomic_path(labels) as new_labels:  # both are renamed, or none
        new_page.write_text(text, encoding="utf-8")
        with open(new_labels, "w", encoding="utf-8-sig", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(COLUMNS)
            table.writerows([cell[column] for column in COLUMNS[:-1]] + [""] for cell in cells)
    return Sheet(labels, page, alike)


def contact_sheet(
    images: Sequence[Picture] | np.ndarray,
    *,
    columns: int = 10,
    cell: int | None = None,
    gap: int = 2,
    background: str = "white",
) -> Image.Image:
    """Images side by side in reading order, each centred in a square cell, on one picture for a page.

    Args:
        images: (N, C, H, W) uint8, or a list of paths, PIL images or pixels.
        columns: at most so many a row. cell: pixels a side; None takes the largest image's, at most 128. gap: pixels
            between cells and around them.
    Raises: ConfigError without images or for columns or cell below 1; else as `write_sheet`.
    """
    if not len(images) or columns < 1 or gap < 0 or (cell is not None and cell < 1):
        raise ConfigError(f"contact sheet: needs an image, columns and cell ≥ 1, gap ≥ 0; got {len(images)} images")
    pictures = [as_image(picture, f"number {index}") for index, picture in enumerate(images)]
    side = cell or min(128, max(max(picture.size) for picture in pictures))
    across = min(columns, len(pictures))
    down = math.ceil(len(pictures) / across)
    sheet = Image.new("RGB", (across * (side + gap) + gap, down * (side + gap) + gap), background)
    for index, picture in enumerate(pictures):
        small = thumbnail(picture, side)
        row, column = divmod(index, across)
        x, y = gap + column * (side + gap), gap + row * (side + gap)
        sheet.paste(small, (x + (side - small.width) // 2, y + (side - small.height) // 2))
    return sheet


def duplicates(images: Sequence[Picture] | np.ndarray) -> list[list[int]]:
    """Groups, of two or more places in `images`, that are the same: files byte by byte, arrays pixel by pixel.

    Raises: DataMissing or CorruptFile naming a file that cannot be read.
    """
    groups: dict[str, list[int]] = {}
    for place, picture in enumerate(images):
        groups.setdefault(content_hash(picture), []).append(place)
    return [group for group in groups.values() if len(group) > 1]


def _names(images: Sequence[Picture] | np.ndarray) -> list[str]:
    return [Path(picture).as_posix() if isinstance(picture, (str, Path)) else "" for picture in images]


def _check(ids: list[int], images: int, names: int, classes: Sequence[str], suggestions: np.ndarray | None) -> None:
    if not ids or not len(ids) == images == names:
        raise ConfigError(f"sheet: one image and one name an id, one at least; got {len(ids)}, {images} and {names}")
    if len(set(ids)) != len(ids):
        raise ConfigError("sheet: an id comes twice")
    if suggestions is not None and np.shape(suggestions) != (len(ids), len(classes)):
        raise ConfigError(
            f"sheet: suggestions have to be ({len(ids)}, {len(classes)}), a probability for every image and class; "
            f"got {np.shape(suggestions)}"
        )


def _guesses(ids: list[int], classes: Sequence[str], suggestions: np.ndarray | None) -> list[tuple[str, str]]:
    """The likeliest class of each and its probability, as text."""
    if suggestions is None:
        return [("", "")] * len(ids)
    table = np.asarray(suggestions)
    return [(str(classes[k]), f"{float(row[k]):.4f}") for row, k in zip(table, table.argmax(1))]


def _keep_labels(path: Path) -> None:
    """Hours of somebody's work may be in an earlier file.

    Raises: OutputError.
    """
    if not path.exists():
        return
    try:
        (_, header), *rows = read_table(path)
        column = [cell.strip().lower() for cell in header].index("label")
        filled = sum(bool("".join(cells[column : column + 1]).strip()) for _, cells in rows)
    except (UserError, ValueError):
        raise OutputError(f"{path}: is there and is no sheet of labels; choose another folder") from None
    if filled:
        raise OutputError(f"{path}: has {filled} labels already; submit it, move it away or choose another folder")


def _render(cells: list[dict], classes: list[str], alike: list[list[int]]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    jinja = Environment(
        loader=PackageLoader("limbeck.multimodal.vlm", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return jinja.get_template("sheet.html.j2").render(cells=cells, classes=classes, alike=alike)
